"""Inference libraries behind one protocol: a backend is ready once constructed, runs arrays, and is closed."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

from ..tensors import Array, TensorSpec

__all__ = ["Backend"]


class Backend(Protocol):
    """One loaded model. Feeds must fit ``inputs``: the caller checks them once (``tensors.check_feeds``)."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises BackendError where the library fails."""

    def close(self) -> None:
        """Free the model; it cannot run again."""

    def __enter__(self) -> Backend: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
