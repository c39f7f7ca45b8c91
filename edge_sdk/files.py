"""Files that are whole or not there at all, and where those go that can be made again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["aside", "cache_folder", "write_aside"]


def cache_folder() -> Path:
    """Where fetched archives, unpacked data sets and engines go: ``$EDGESDK_CACHE``, else ``~/.cache/edgesdk``."""
    chosen = os.environ.get("EDGESDK_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgesdk"


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Gives a path beside ``path`` to write to, which takes its place at the end, or is removed after an error.

    Raises:
        OSError: it cannot be written or renamed.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_aside(path: Path, content: bytes) -> None:
    """Write a whole file.

    Raises:
        OSError: it cannot be written.
    """
    with aside(path) as partial:
        partial.write_bytes(content)
