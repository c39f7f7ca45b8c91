"""The roofline of a machine, and where a part's layers lie under it (Williams et al., CACM 52(4), 2009)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..bundle import LayerCost
from .devices import ELEMENT_BYTES

__all__ = ["LayerPoint", "Roofs", "layer_points", "measured_roofs"]

MATRIX = 1024
COPY_BYTES = 1 << 27
REPEATS = 5


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


def measured_roofs() -> Roofs:
    """Of this machine's CPU: numpy's float32 matrix product and a copy of 128 MiB, the best of five, on all cores."""
    a = np.random.default_rng(0).random((MATRIX, MATRIX), np.float32)
    source, target = np.ones(COPY_BYTES, np.uint8), np.empty(COPY_BYTES, np.uint8)
    return Roofs(2 * MATRIX**3 / _best(lambda: a @ a), 2 * COPY_BYTES / _best(lambda: np.copyto(target, source)))


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
