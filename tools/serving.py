"""Server processes of a bundle's tails, for the scripts beside this one."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

EDGESDK = (sys.executable, "-c", "import sys; sys.argv[0] = 'edgesdk'; from edge_sdk.cli import main; main()")


@contextmanager
def process(command: Sequence[str]) -> Iterator[str]:
    """The address of a process that prints it in its first line on standard error; terminated at the end."""
    with process_of(command) as (url, _):
        yield url


@contextmanager
def process_of(command: Sequence[str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The same, and the process."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as started:
        assert started.stderr is not None
        try:
            line = started.stderr.readline()
            found = re.search(r'http://[^\s"]+', line)
            if not found:
                sys.exit(f"a server did not start: {line}{started.stderr.read()}")
            yield found.group(), started
        finally:
            started.terminate()


def serve(folder: Path, *options: str) -> tuple[str, ...]:
    """The command that serves a server's folder on a free port of this machine."""
    return (*EDGESDK, "serve", str(folder), "--port", "0", *options)


def resident_kib(pid: int) -> int:
    """Memory of a process and of those that it started; what they share counts for each."""
    status = Path(f"/proc/{pid}/status").read_text()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    total = int(status.partition("VmRSS:")[2].split()[0])
    for child in children:
        with suppress(OSError, IndexError):  # it has ended meanwhile; an ended one has no VmRSS
            total += resident_kib(int(child))
    return total
