"""Peak memory of a model, measured in a process of its own so that nothing else counts."""

from __future__ import annotations

import sys

import msgspec

from ..apart import answer_apart

__all__ = ["peak_memory_bytes"]


def peak_memory_bytes(model: bytes, batch: int, num_threads: int | None) -> int | None:
    """Resident memory that loading the model and three runs add to a process at their peak.

    Libraries do not count. None where the operating system does not tell (it is read from ``/proc/self/status``).

    Raises:
        BackendError: the measuring process failed.
    """
    answer = answer_apart("measures memory", f"{__name__}:{_measure.__name__}", batch, num_threads, content=model)
    return msgspec.json.decode(answer, type=int | None)


def _peak_rss() -> int | None:
    # VmHWM, not getrusage: the latter starts at what the parent process once had.
    try:
        with open("/proc/self/status") as file:
            sizes = [int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:")]
    except OSError:
        return None
    return sizes[0] if sizes else None


def _measure(batch: int, num_threads: int | None) -> int:
    import onnxruntime  # noqa: F401  (counted as a library, before the model)

    from ..backends.onnxruntime import OnnxRuntimeBackend
    from .feeds import random_feeds

    model = sys.stdin.buffer.read()
    before = _peak_rss()
    with OnnxRuntimeBackend(model, num_threads) as backend:
        feeds = random_feeds(backend.inputs, batch)
        for _ in range(3):
            backend.run(feeds)
    after = _peak_rss()
    added = None if before is None or after is None else after - before
    sys.stdout.buffer.write(msgspec.json.encode(added))
    return 0
