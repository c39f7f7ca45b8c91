"""A function in a process of its own, on the path of this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping

from .errors import BackendError

__all__ = ["answer_apart", "run_apart"]

_CHILD = """
import json, sys
function, arguments = sys.argv[1:3]
sys.path[:] = sys.argv[3:]
from importlib import import_module
module, _, name = function.partition(":")
sys.exit(getattr(import_module(module), name)(*json.loads(arguments)))
"""
"""Not by ``-m``: the current folder, where anybody may write, is on its path."""


def answer_apart(
    purpose: str,
    function: str,
    *arguments: str | int | None,
    content: bytes = b"",
    environment: Mapping[str, str] | None = None,
) -> bytes:
    """Run it as ``run_apart`` does; what it wrote to its standard output.

    Args:
        purpose: of the process, as in "measures memory".
        function, arguments, content, environment: as there.

    Raises:
        BackendError: the process failed; the message has the last line that it wrote to its standard error.
    """
    done = run_apart(function, *arguments, content=content, environment=environment)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise BackendError(f"the process that {purpose} failed with status {done.returncode}: {''.join(last)}")
    return done.stdout


def run_apart(
    function: str, *arguments: str | int | None, content: bytes = b"", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run it and wait; what it returns is the exit status.

    Args:
        function: ``module:name``.
        arguments: that JSON can say.
        content: of its standard input.
        environment: variables beside those of this process.
    """
    command = [sys.executable, "-c", _CHILD, function, json.dumps(arguments), *sys.path]
    return subprocess.run(  # noqa: S603  (our own function)
        command, input=content, capture_output=True, env={**os.environ, **(environment or {})}, check=False
    )
