"""A look at the machine again and again, beside what runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

__all__ = ["Sampler"]

T = TypeVar("T")
Self = TypeVar("Self", bound="Sampler[Any]")


class Sampler(Generic[T]):
    """Takes a sample at the begin and at the end of the body of a ``with``, and in a thread of its own between.

    Args:
        take: a sample.
        interval_s: between two.
    """

    def __init__(self, take: Callable[[], T], interval_s: float) -> None:
        self._take, self._interval_s = take, interval_s
        self._samples: list[T] = []
        self._error: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="sampler", daemon=True)

    def __enter__(self: Self) -> Self:
        self._samples.append(self._take())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if error is None and self._error is None:
            self._samples.append(self._take())

    @property
    def samples(self) -> list[T]:
        """Of the body, which has ended.

        Raises:
            Exception: what went wrong in the thread.
        """
        if self._error is not None:
            raise self._error
        return self._samples

    def _follow(self) -> None:
        try:
            while not self._stop.wait(self._interval_s):
                self._samples.append(self._take())
        except Exception as error:
            self._error = error
