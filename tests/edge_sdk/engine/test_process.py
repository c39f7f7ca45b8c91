import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

import edge_sdk.engine.process as process
from edge_sdk.bundle import open_party
from edge_sdk.engine.build import EngineOptions
from edge_sdk.errors import BackendError, ConfigError, DeviceError, MissingExtra

ONE = EngineOptions(targets=("sm_89",))


@pytest.fixture(scope="module")
def encoder(bundle):
    opened = open_party(bundle / "edge")
    return opened.onnx(opened.manifest.parts[0])


def test_the_child_gives_engine_and_layers(rtx, encoder):
    built = process.build_apart(encoder, ONE, "tensorrt_rtx")
    assert built.content.startswith(b"vtrt")
    assert (built.library, built.version) == ("tensorrt_rtx", rtx.version)
    assert any(layer.kind == "CONVOLUTION" for layer in built.layers)


@pytest.mark.parametrize(
    ("onnx", "targets", "kind", "words"),
    [
        (b"no model", ("sm_89",), BackendError, "cannot read the model"),
        (None, ("sm_1",), ConfigError, "no target sm_1"),
    ],
)
def test_the_childs_errors_are_raised_here(rtx, encoder, onnx, targets, kind, words):
    with pytest.raises(kind, match=words):
        process.build_apart(onnx or encoder, EngineOptions(targets=targets), "tensorrt_rtx")


def test_a_library_that_is_not_there_is_named(encoder):
    if find_spec("tensorrt"):
        pytest.skip("TensorRT is installed here")
    with pytest.raises(MissingExtra, match=r"JetPack.*--system-site-packages"):
        process.build_apart(encoder, EngineOptions(), "tensorrt")


def test_too_little_memory_is_said_before_the_build(encoder, monkeypatch):
    monkeypatch.setattr(process, "available_memory", lambda: 100 << 20)
    monkeypatch.setattr(process, "_free_swap", lambda: 0)
    with pytest.raises(DeviceError, match=r"100 MiB of memory are free.*takes about 51\d MiB; close the desktop"):
        process.build_apart(encoder, ONE, "tensorrt_rtx")


def test_others_can_make_room_in_swap(encoder, monkeypatch):
    monkeypatch.setattr(process, "available_memory", lambda: 100 << 20)
    monkeypatch.setattr(process, "_free_swap", lambda: 8 << 30)
    assert process._within_memory(encoder, ONE, True).workspace_bytes == 50 << 20  # but the GPU cannot


def test_swap_is_not_a_containers(monkeypatch):
    monkeypatch.setattr(process, "_meminfo", lambda name: [int(name == "SwapFree") << 30])
    monkeypatch.setattr(process, "_left_in_container", list)
    assert process._free_swap() == 1 << 30
    monkeypatch.setattr(process, "_left_in_container", lambda: [5])
    assert process._free_swap() == 0


def test_what_lies_in_the_current_folder_is_not_run(rtx, encoder, tmp_path, monkeypatch):
    (tmp_path / "msgspec.py").write_text("raise SystemExit(5)")
    monkeypatch.chdir(tmp_path)
    assert process.build_apart(encoder, ONE, "tensorrt_rtx").content


def test_a_build_does_not_outlive_who_waits_for_it(tmp_path):
    starts = (
        "import json, subprocess, sys; from edge_sdk.apart import _CHILD; "
        f"given = 'edge_sdk.engine.process:_main', json.dumps([{str(tmp_path / 'answer')!r}]); "
        "child = subprocess.Popen([sys.executable, '-c', _CHILD, *given, *sys.path]); "
        "print(child.pid, flush=True); child.wait()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", starts], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        child = Path("/proc") / parent.stdout.readline().strip()
        parent.stdin.write("x" * 2**17)  # more than a pipe holds: the child has begun to read
        parent.stdin.flush()
        parent.terminate()
        parent.wait()
        end = time.monotonic() + 30
        while not _gone(child):
            assert time.monotonic() < end
            time.sleep(0.05)


def _gone(process):
    try:
        return " Z " in (process / "stat").read_text().rpartition(")")[2]
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_where_memory_is_shared_the_workspace_is_half_of_what_is_free(encoder, monkeypatch):
    monkeypatch.setattr(process, "available_memory", lambda: 4 << 30)
    assert process._within_memory(encoder, ONE, True).workspace_bytes == 2 << 30
    assert process._within_memory(encoder, ONE, False) == ONE
    asked = EngineOptions(workspace_bytes=1 << 20)
    assert process._within_memory(encoder, asked, True) == asked


@pytest.mark.parametrize(("limit", "left"), [("1000\n", [350]), ("600\n", [0]), ("max\n", []), (None, [])])
def test_a_containers_limit_counts(tmp_path, limit, left):
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text("700\n")
        (tmp_path / "memory.stat").write_text("anon 650\nactive_file 20\ninactive_file 30\n")
    assert process._left_in_container(tmp_path) == left


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [(signal.SIGKILL, DeviceError, "want of memory; close the desktop"), (signal.SIGSEGV, BackendError, "SIGSEGV")],
)
def test_a_killed_build_says_what_to_do(encoder, monkeypatch, number, kind, words):
    """The real child, which the kernel or a fault of TensorRT's ends: here, itself."""
    run = subprocess.run
    suicide = f"import os, sys; sys.stdin.buffer.read(); os.kill(os.getpid(), {int(number)})"
    monkeypatch.setattr(subprocess, "run", lambda command, **rest: run([command[0], "-c", suicide], **rest))
    with pytest.raises(kind, match=words):
        process.build_apart(encoder, ONE, "tensorrt_rtx")
