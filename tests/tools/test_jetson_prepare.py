"""tools/jetson_prepare.sh over stand-ins of NVIDIA's commands: what it sets, and that it sets nothing unasked."""

import os
import subprocess

import pytest

from ..conftest import ROOT

SCRIPT = ROOT / "tools" / "jetson_prepare.sh"
STANDS_IN = {
    "sudo": 'echo "sudo $*" >>"$DONE"; case $1 in test) exit 1 ;; install | rm) exit 0 ;; esac; exec "$@"',
    "nvpmodel": '[ "$1" = -m ] || { echo "NV Power Mode: X"; exec cat "$MODE"; }; echo "$2" >"$MODE"; exit ${FAILS:-0}',
    "jetson_clocks": "exit 0",
}


@pytest.fixture
def run(tmp_path):
    for name, body in STANDS_IN.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    (tmp_path / "mode").write_text("2\n")
    (tmp_path / "done").write_text("")

    def run(*arguments, **environment):
        known = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "DONE": str(tmp_path / "done")}
        done = subprocess.run(
            ["bash", SCRIPT, *arguments], capture_output=True, text=True, timeout=30,
            env={**os.environ, **known, "MODE": str(tmp_path / "mode"), **environment},
        )  # fmt: skip
        return done, (tmp_path / "done").read_text().splitlines()

    return run


def test_it_sets_nothing_unasked(run):
    done, commands = run()
    assert not commands
    assert done.returncode == 1  # this is no Jetson
    assert "no Jetson" in done.stderr


@pytest.fixture
def jetson(tmp_path):
    root = tmp_path / "root"
    for path, text in {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3\nmore",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano\0",
        **{f"sys/class/devfreq/17000000.gpu/{name}_freq": "1020000000" for name in ("cur", "min", "max")},
        "sys/class/devfreq/17000001.gpu/cur_freq": "1",  # which cannot be read whole
        "sys/devices/platform/gpu.0/tpc_pg_mask": "252",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_it_shows_mode_clocks_and_memory(run, jetson):
    done, commands = run(EDGESDK_ROOT=str(jetson))
    assert (done.returncode, done.stderr, commands) == (0, "", [])
    shown = {line[:11].strip(): line[11:] for line in done.stdout.splitlines()}
    assert shown["module"] == "NVIDIA Jetson Orin Nano"
    assert shown["L4T"] == "# R36 (release), REVISION: 4.3"
    assert shown["power mode"].split() == ["NV", "Power", "Mode:", "X", "2"]
    assert shown["modes"] == "0 15W,2 MAXN_SUPER"
    assert shown["GPU clock"] == "1020 MHz, 1020 to 1020 allowed"
    assert shown["TPCs off"] == "mask 252"
    assert shown["memory"].endswith(" MiB free")


def test_what_a_jetson_does_not_tell_is_unknown(run, jetson):
    (jetson / "proc/device-tree/model").unlink()
    done, _ = run(EDGESDK_ROOT=str(jetson))
    assert (done.returncode, done.stderr) == (0, "")
    assert "module     unknown\n" in done.stdout


def test_a_mode_that_cannot_be_read_back_is_no_success(run, tmp_path, jetson):
    done, commands = run("--mode", "1", EDGESDK_ROOT=str(jetson), MODE=str(tmp_path / "bin"))
    assert done.returncode == 1
    assert "jetson_prepare: " in done.stderr
    assert not any("rm" in command.split() for command in commands)


def test_what_it_sets_is_said(run):
    done, commands = run("--mode", "1")
    assert commands == ["sudo nvpmodel -m 1", "sudo rm -f /run/edgesdk/jetson-clocks"]
    assert all(f"+ {command}" in done.stdout for command in commands)
    _, commands = run("--lock")
    assert commands[-2:] == ["sudo jetson_clocks --store /run/edgesdk/jetson-clocks", "sudo jetson_clocks"]


def test_a_mode_that_is_not_taken_keeps_the_stored_clocks(run):
    done, commands = run("--mode", "1", FAILS="1")
    assert done.returncode != 0
    assert not any("rm" in command.split() for command in commands)


@pytest.mark.parametrize("arguments", [("--mode", "x"), ("--mode",), ("--what",), ("--mode", "1", "2")])
def test_wrong_usage(run, arguments):
    done, commands = run(*arguments)
    assert (done.returncode, commands) == (2, [])


def test_unlocking_needs_what_was_stored(run):
    done, _ = run("--unlock")
    assert done.returncode == 1
    assert "nothing was stored" in done.stderr
