"""The roofline of a machine, and where a part's layers lie under it (Williams et al., CACM 52(4), 2009)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np

from ..apart import answer_apart
from ..bundle import LayerCost
from .devices import ELEMENT_BYTES

__all__ = ["LayerPoint", "Roofs", "layer_points", "measured_roofs"]

MATRIX = 1024
COPY_BYTES = 1 << 27
REPEATS = 5
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class Roofs(NamedTuple):
    """FLOPs a second that arithmetic reaches at most, and bytes a second that memory does."""

    flops: float
    bytes_per_second: float


class LayerPoint(NamedTuple):
    """A layer with FLOPs: how many it does in all, for a byte that it moves at least, and a second."""

    name: str
    flops: int
    intensity: float
    flops_per_second: float


def measured_roofs(num_threads: int | None = None) -> Roofs:
    """Of this machine's CPU: numpy's float32 matrix product and a copy of 128 MiB, the best of five.

    Args:
        num_threads: of the product; None takes all cores. The copy has one, as numpy's copies have.

    Raises:
        BackendError: the measuring process failed.
    """
    threads = {} if num_threads is None else dict.fromkeys(THREADS, str(num_threads))
    answer = answer_apart("measures the roofs", f"{__name__}:{_measure.__name__}", environment=threads)
    return msgspec.json.decode(answer, type=Roofs)


def _measure() -> int:
    """In a process of its own: numpy's library takes its number of threads when it is loaded."""
    a = np.random.default_rng(0).random((MATRIX, MATRIX), np.float32)
    source, target = np.ones(COPY_BYTES, np.uint8), np.empty(COPY_BYTES, np.uint8)
    found = Roofs(2 * MATRIX**3 / _best(lambda: a @ a), 2 * COPY_BYTES / _best(lambda: np.copyto(target, source)))
    sys.stdout.buffer.write(msgspec.json.encode(found))
    return 0


def layer_points(layers: tuple[LayerCost, ...], layer_ms: dict[str, float], batch: int) -> list[LayerPoint]:
    """Of the layers that do FLOPs and were timed, in float32; bytes are weights and activations, each moved once."""
    return [
        LayerPoint(
            name=layer.name,
            flops=layer.flops * batch,
            intensity=layer.flops * batch / (ELEMENT_BYTES["fp32"] * layer.elements(batch)),
            flops_per_second=layer.flops * batch / layer_ms[layer.name] * 1e3,
        )
        for layer in layers
        if layer.flops and layer_ms.get(layer.name)
    ]


def _best(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)
