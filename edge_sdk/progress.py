"""Progress bars on standard error; silent where that is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["bar", "stages", "track", "track_bytes"]

T = TypeVar("T")


@contextmanager
def bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a function that takes the steps done and in all."""
    with _progress() as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """Gives a function that takes what is being done, and the steps done and in all of it."""
    with _progress() as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)


def track(items: Iterable[T], total: int, description: str) -> Iterator[T]:
    """The items, with a bar that counts them."""
    with _progress() as progress:
        yield from progress.track(items, total, description=description)


def track_bytes(chunks: Iterable[bytes], total: int, description: str) -> Iterator[bytes]:
    """The chunks, with a bar that counts their bytes."""
    with _progress() as progress:
        task = progress.add_task(description, total=total or None)
        for chunk in chunks:
            yield chunk
            progress.advance(task, len(chunk))


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)
