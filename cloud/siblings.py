"""What the processes of one server tell each other: each writes its counts to a file of a folder that all can read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from edge_sdk.files import write_aside

from .statistics import AllStatistics, ModelStatistics

__all__ = ["Siblings"]

PERIOD_SECONDS = 0.5
"""Between two writings: as old are the others' counts at most."""

SUFFIX = ".json"


class Siblings:
    """One process among them; runs beside its server.

    Args:
        folder: of the files; best in memory. Whoever can write there can feign counts.
        name: of this process; one that takes another's place needs a new name, so that counts never fall.
        mine: gives its own counts.
        lives: whether the process of a name is still there.
    """

    def __init__(
        self, folder: Path, name: str, mine: Callable[[], AllStatistics], lives: Callable[[str], bool]
    ) -> None:
        self._lives = lives
        self._folder, self._file, self._mine = folder, folder / f"{name}{SUFFIX}", mine
        self._task: asyncio.Task[None] | None = None
        self._written = b""

    def others(self) -> Iterator[AllStatistics]:
        """Their counts, of those that have written any."""
        for path in self._folder.glob(f"*{SUFFIX}"):
            if path != self._file:
                with suppress(OSError, msgspec.DecodeError):
                    models, refused = _decoder.decode(path.read_bytes())
                    if not self._lives(path.name.removesuffix(SUFFIX)):
                        for _, each in models:
                            each.waiting = 0  # what it counted stays counted
                    yield AllStatistics(dict(models), refused)

    async def start(self) -> None:
        """Write from now on."""
        self._task = asyncio.create_task(self._go_on())

    async def stop(self) -> int:
        """Write a last time: what was counted stays counted. No request is lost by it."""
        if self._task is not None:
            self._task.cancel()
        self._write()
        return 0

    async def _go_on(self) -> None:
        while True:
            self._write()
            await asyncio.sleep(PERIOD_SECONDS)

    def _write(self) -> None:
        mine = self._mine()
        content = msgspec.json.encode((list(mine.models.items()), mine.refused))
        if content != self._written:
            write_aside(self._file, content)
            self._written = content


_decoder = msgspec.json.Decoder(tuple[list[tuple[tuple[str, str], ModelStatistics]], dict[int, int]])
