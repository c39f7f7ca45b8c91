"""Memory that loading a model took and freed again: glibc keeps it for the process until it is told not to."""

from __future__ import annotations

import ctypes

__all__ = ["release_freed"]


def release_freed() -> None:
    """Give it back to the system; nothing happens where the C library has no such call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
