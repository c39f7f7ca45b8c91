"""Runs ``grpc_tensors.py`` in a process of its own: Triton's client defines the same messages, a process holds one."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("google.protobuf", reason="needs edgesdk[grpc]")


def test_tensors_of_messages():
    tests = Path(__file__).with_name("grpc_tensors.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)],
        cwd=tests.parent.parent.parent, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
