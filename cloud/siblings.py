"""What the processes of one server tell each other: each writes its counts to a file of a folder that all can read."""

from __future__ import annotations

import asyncio
import logging
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

_log = logging.getLogger("edgesdk.cloud")


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
        self._fails = False
        self._read: dict[Path, bytes] = {}

    def others(self) -> Iterator[AllStatistics]:
        """Their counts, of those that have written any; of a file that is gone or damaged the last ones read."""
        for path in {*self._read, *self._folder.glob(f"*{SUFFIX}")} - {self._file}:
            content = self._read.get(path, b"")
            with suppress(OSError):
                content = path.read_bytes()
            for each in (content, self._read.get(path, b"")):
                with suppress(msgspec.DecodeError):
                    models, refused = _decoder.decode(each)
                    self._read[path] = each
                    if not self._lives(path.name.removesuffix(SUFFIX)):
                        for _, model in models:
                            model.waiting = 0  # what it counted stays counted
                    yield AllStatistics(dict(models), refused)
                    break

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
        if content == self._written:
            return
        try:
            write_aside(self._file, content)
        except OSError as error:  # a full or cleaned /dev/shm: no reason to serve nobody
            if not self._fails:
                _log.error("the other workers do not see this one's counts: %s", error)
            self._fails = True
        else:
            self._written, self._fails = content, False


_decoder = msgspec.json.Decoder(tuple[list[tuple[tuple[str, str], ModelStatistics]], dict[int, int]])
