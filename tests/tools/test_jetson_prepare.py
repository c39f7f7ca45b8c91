"""tools/jetson_prepare.sh over stand-ins of NVIDIA's commands: what it sets, and that it sets nothing unasked."""

import os
import subprocess

import pytest

from ..conftest import ROOT

TOLD = """GPU MinFreq=306000000 MaxFreq=1020000000 CurrentFreq=306000000
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=2133000000 FreqOverride=0"""
SCRIPT = ROOT / "tools" / "jetson_prepare.sh"
STANDS_IN = {  # the test runs what sudo is asked for, as nobody but itself
    "sudo": """
echo "sudo $*" >>"$DONE"
[ "$1" != install ] || exec mkdir -p "${*##* }"
exec "$@"
""",
    "nvpmodel": '[ "$1" = -m ] || { echo "NV Power Mode: X"; exec cat "$MODE"; }; echo "$2" >"$MODE"; exit ${FAILS:-0}',
    "jetson_clocks": """
case ${1:-} in
--show) echo "$TOLD" ;;
--store) cp "$CLOCKS" "$2" ;;
--restore) cp "$2" "$CLOCKS" ;;
*) echo locked >"$CLOCKS" ;;
esac
""",
}


@pytest.fixture
def run(tmp_path):
    for name, body in STANDS_IN.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    (tmp_path / "mode").write_text("2\n")
    (tmp_path / "clocks").write_text("varying\n")
    (tmp_path / "done").write_text("")

    def run(*arguments, **environment):
        files = {name: str(tmp_path / name.lower()) for name in ("CLOCKS", "DONE", "MODE")}
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", SCRIPT, *arguments], capture_output=True, text=True, timeout=30,
            env={**os.environ, "PATH": path, **files, **environment},
        )  # fmt: skip
        return done, (tmp_path / "done").read_text().splitlines()

    return run


@pytest.mark.parametrize("arguments", [(), ("--mode", "1"), ("--lock",), ("--unlock",)])
def test_on_what_is_no_jetson_nothing_is_set(run, tmp_path, arguments):
    done, commands = run(*arguments, EDGESDK_ROOT=str(tmp_path))
    assert done.returncode == 1
    assert "no Jetson" in done.stderr
    assert (commands, done.stdout) == ([], "")


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
        **{f"sys/devices/system/cpu/cpufreq/policy{i}/{name}": text for i in (0, 4) for name, text in {
            "scaling_cur_freq": f"72960{i}", "scaling_min_freq": "729600", "scaling_max_freq": "1510400",
            "affected_cpus": f"{i} {i + 1}",
        }.items()},
    }.items():  # fmt: skip
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_it_shows_mode_clocks_and_memory(run, jetson):
    done, commands = run(EDGESDK_ROOT=str(jetson), TOLD=TOLD)
    assert (done.returncode, done.stderr, commands) == (0, "", [])
    shown = {line[:11].strip(): line[11:] for line in done.stdout.splitlines()}
    assert shown["module"] == "NVIDIA Jetson Orin Nano"
    assert shown["L4T"] == "# R36 (release), REVISION: 4.3"
    assert shown["power mode"].split() == ["NV", "Power", "Mode:", "X", "2"]
    assert shown["modes"] == "0 15W,2 MAXN_SUPER"
    assert shown["GPU clock"] == "1020 MHz, 1020 to 1020 allowed"
    assert "CPU clock  729 MHz, 729 to 1510 allowed, CPUs 0 1\n" in done.stdout
    assert "CPU clock  729 MHz, 729 to 1510 allowed, CPUs 4 5\n" in done.stdout
    assert shown["EMC clock"] == "2133 MHz, 204 to 3199 allowed"
    assert shown["TPCs off"] == "mask 252"
    assert shown["memory"].endswith(" MiB free")


def test_what_a_jetson_does_not_tell_is_unknown(run, jetson):
    (jetson / "proc/device-tree/model").unlink()
    done, _ = run(EDGESDK_ROOT=str(jetson))
    assert (done.returncode, done.stderr) == (0, "")
    assert "module     unknown\n" in done.stdout
    assert "EMC clock  unknown: jetson_clocks tells the memory's to root alone\n" in done.stdout


def test_a_mode_that_cannot_be_read_back_is_no_success(run, tmp_path, jetson):
    done, commands = run("--mode", "1", EDGESDK_ROOT=str(jetson), MODE=str(tmp_path / "bin"))
    assert done.returncode == 1
    assert "jetson_prepare: " in done.stderr
    assert not any("rm" in command.split() for command in commands)


def test_what_it_sets_is_said(run, tmp_path, jetson):
    store = jetson / "run/edgesdk/jetson-clocks"
    done, commands = run("--mode", "1", EDGESDK_ROOT=str(jetson))
    assert (done.returncode, done.stderr) == (0, "")
    assert commands == ["sudo nvpmodel -m 1", f"sudo rm -f {store}"]
    assert all(f"+ {command}\n" in done.stdout for command in commands)
    assert "power mode NV Power Mode: X 1" in done.stdout  # as it is then
    done, commands = run("--lock", EDGESDK_ROOT=str(jetson))
    assert (done.returncode, done.stderr) == (0, "")
    assert commands[-2:] == [f"sudo jetson_clocks --store {store}", "sudo jetson_clocks"]
    assert all(f"+ {command}\n" in done.stdout for command in commands[-2:])
    assert (store.read_text(), (tmp_path / "clocks").read_text()) == ("varying\n", "locked\n")


def test_clocks_that_were_locked_twice_are_unlocked_to_what_they_were_before(run, tmp_path, jetson):
    clocks, store = tmp_path / "clocks", jetson / "run/edgesdk/jetson-clocks"
    for _ in range(2):
        done, _ = run("--lock", EDGESDK_ROOT=str(jetson))
        assert (done.returncode, done.stderr, clocks.read_text()) == (0, "", "locked\n")
    done, commands = run("--unlock", EDGESDK_ROOT=str(jetson))
    assert (done.returncode, done.stderr, clocks.read_text()) == (0, "", "varying\n")
    assert commands.count(f"sudo jetson_clocks --store {store}") == 1
    assert commands[-2:] == [f"sudo jetson_clocks --restore {store}", f"sudo rm {store}"]
    assert all(f"+ {command}\n" in done.stdout for command in commands[-2:])
    assert not store.exists()


def test_a_mode_that_is_not_taken_keeps_the_stored_clocks(run, jetson):
    assert run("--lock", EDGESDK_ROOT=str(jetson))[0].returncode == 0
    done, commands = run("--mode", "1", FAILS="1", EDGESDK_ROOT=str(jetson))
    assert done.returncode != 0
    assert not any("rm" in command.split() for command in commands)
    assert (jetson / "run/edgesdk/jetson-clocks").exists()


@pytest.mark.parametrize("arguments", [("--mode", "x"), ("--mode",), ("--what",), ("--mode", "1", "2")])
def test_wrong_usage(run, arguments):
    done, commands = run(*arguments)
    assert (done.returncode, commands) == (2, [])


def test_unlocking_needs_what_was_stored(run, jetson):
    done, commands = run("--unlock", EDGESDK_ROOT=str(jetson))
    assert done.returncode == 1
    assert [command.split()[1] for command in commands] == ["test"]
    assert "nothing was stored" in done.stderr
