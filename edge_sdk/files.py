"""Files that are whole or not there at all, and where those go that can be made again."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["aside", "cache_folder", "folder_aside", "write_aside"]


def cache_folder() -> Path:
    """Where fetched archives, unpacked data sets and engines go: ``$EDGESDK_CACHE``, else ``~/.cache/edgesdk``."""
    chosen = os.environ.get("EDGESDK_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgesdk"


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Gives a path beside ``path`` to write to, which takes its place at the end, or is removed after an error.

    What a link points to is replaced, not the link. A device or a pipe is written to instead: it has no other place.

    Raises:
        OSError: it cannot be written or renamed.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
            with _named(path):
                path.write_bytes((Path(folder) / path.name).read_bytes())
        return
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with _named(path):
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """Gives a folder beside ``path`` to fill, which takes its place at the end, or is removed after an error.

    Raises:
        OSError: it cannot be written or renamed; an empty folder may be there, any other may not.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    folder.chmod(0o755)  # mkdtemp's 0700 would lock a service account out of what was written
    try:
        with _named(path):
            yield folder
            os.replace(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """A full disk's error names no file: say which could not be written."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_aside(path: Path, content: bytes) -> None:
    """Write a whole file.

    Raises:
        OSError: it cannot be written.
    """
    with aside(path) as partial:
        partial.write_bytes(content)
