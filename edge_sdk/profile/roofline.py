"""The roofline of a machine, and where a part's layers lie under it (Williams et al., CACM 52(4), 2009)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec
import numpy as np

from ..apart import answer_apart
from ..bundle import Precision
from .conditions import Conditions
from .devices import modules_in
from .layer_rows import LayerRow
from .machine import Accelerator

__all__ = ["LayerPoint", "Roofs", "layer_points", "measured_roofs", "sheet_roofs"]

MATRIX = 1024
COPY_BYTES = 1 << 27
REPEATS = 5
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class Roofs(NamedTuple):
    """FLOPs a second that arithmetic reaches at most, bytes a second that memory does, and how both are known."""

    flops: float
    bytes_per_second: float
    source: str


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
    flops, bytes_per_second = msgspec.json.decode(answer, type=tuple[float, float])
    threads_used = "all cores" if num_threads is None else f"{num_threads} thread{'s' if num_threads > 1 else ''}"
    return Roofs(
        flops, bytes_per_second, f"this machine's, measured: a float32 matrix product by {threads_used}, and a copy"
    )


def sheet_roofs(accelerator: Accelerator, at: Conditions, precision: Precision) -> Roofs | None:
    """Of a Jetson's GPU, by the data sheet of its module in the power mode and at the clock that were found.

    Args:
        accelerator: what ran.
        at: power mode and clock.
        precision: of the engine.

    Returns:
        None where no Jetson that is known here runs so, or it lacks the precision.
    """
    if at.gpu_mhz is None or at.power_mode is None or accelerator.compute_capability is None:
        return None
    known = modules_in(at.power_mode, accelerator.compute_capability, accelerator.num_sms, at.gpu_mhz[2])
    if len({mode.memory_gbps for _, mode in known}) != 1 or precision not in known[0][0].peak_flops:
        return None
    device, mode = known[0]
    titles = " or ".join(each.title for each, _ in known)
    return Roofs(
        mode.num_sms * mode.gpu_mhz * 1e6 * device.peak_flops[precision],
        mode.memory_gbps * 1e9,
        f"by the data sheet of {titles} in {mode.name}: {mode.num_sms} SMs at {mode.gpu_mhz} MHz, dense {precision}"
        + ("" if mode.sourced else "; a figure of this mode is in no document"),
    )


def _measure() -> int:
    """In a process of its own: numpy's library takes its number of threads when it is loaded."""
    a = np.random.default_rng(0).random((MATRIX, MATRIX), np.float32)
    source, target = np.ones(COPY_BYTES, np.uint8), np.empty(COPY_BYTES, np.uint8)
    found = 2 * MATRIX**3 / _best(lambda: a @ a), 2 * COPY_BYTES / _best(lambda: np.copyto(target, source))
    sys.stdout.buffer.write(msgspec.json.encode(found))
    return 0


def layer_points(rows: Iterable[LayerRow]) -> list[LayerPoint]:
    """Of the layers that do FLOPs and were timed."""
    return [
        LayerPoint(row.name, row.flops, row.flops / row.bytes, row.flops / row.ms * 1e3)
        for row in rows
        if row.flops and row.ms
    ]


def _best(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)
