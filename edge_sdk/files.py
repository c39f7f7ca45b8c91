"""Files that are whole or not there at all, and where those go that can be made again."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["aside", "blocking", "cache_folder", "folder_aside", "write_aside"]


def cache_folder() -> Path:
    """Where fetched archives, unpacked data sets and engines go: ``$EDGESDK_CACHE``, else ``~/.cache/edgesdk``."""
    chosen = os.environ.get("EDGESDK_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgesdk"


def blocking(folder: Path) -> Path | None:
    """What keeps a folder from being made or written to: itself, or the first one above it that is there; or None."""
    path = folder.resolve()
    there = next(each for each in (path, *path.parents) if os.path.exists(each))  # not Path's, which raises
    return None if there.is_dir() and os.access(there, os.W_OK | os.X_OK) else there


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
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_native_id()}.partial")
    try:
        with _named(path, partial):
            yield partial
            os.replace(partial, target)
    finally:
        with suppress(OSError):  # where nothing can be, nothing was left
            partial.unlink()


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """Gives a folder beside ``path`` to fill, which takes its place at the end, or is removed after an error.

    Raises:
        OSError: it cannot be written or renamed; an empty folder may be there, any other may not.
    """
    target = path.resolve()
    prefix = f".{target.name}."
    with _named(path, target.with_name(prefix)):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        try:
            folder.chmod(0o755)  # mkdtemp's 0700 would lock a service account out of what was written
            yield folder
            os.replace(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _named(path: Path, stand_in: Path | None = None) -> Iterator[None]:
    """Errors are of ``path``: a full disk's names no file, others the stand-in, which the user never heard of.

    Args:
        path: as it was given.
        stand_in: what is written in its place, or how that begins.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        elif stand_in is not None and str(error.filename).startswith(str(stand_in)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_aside(path: Path, content: bytes) -> None:
    """Write a whole file.

    Raises:
        OSError: it cannot be written.
    """
    with aside(path) as partial:
        partial.write_bytes(content)
