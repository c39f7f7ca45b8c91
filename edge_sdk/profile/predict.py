"""Latency of a network on a Jetson that is not at hand: an estimate, with the error it had where it could be checked.

Every fused kernel takes the longer of computing and moving its bytes, and a fixed time beside:

    compute = FLOPs / (SMs clock rate occupancy),   1 / rate = 1 / (efficiency peak) + element bytes / staging
    memory  = (weights + activations) element bytes / (share of the bandwidth)
    fixed   = launch + cycles / clock

``staging`` bounds what reaches a multiprocessor's arithmetic in a clock: tensor cores wait for it, the CUDA cores of a
Nano do not. ``occupancy`` is the share of the multiprocessors that a small output can keep busy. Kernels with few
multiplications an output (depthwise convolutions) run on CUDA cores. The constants are fitted to published latencies of
TensorRT engines at batch 1 by ``tools/fit_predictor.py``, which leaves each device out in turn to find the error. The
fit has a prior, which was chosen by that same error: with none it is ``MEDIAN_ERROR_WITHOUT_PRIOR``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from ..bundle import Cost, LayerCost, Precision
from .devices import ELEMENT_BYTES, Device, PowerMode

__all__ = ["CONSTANTS", "Constants", "Estimate", "Kernel", "estimate_latency", "fuse_kernels", "kernel_ms"]

PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
REDUCTIONS = {
    "ArgMax", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "GroupNormalization", "InstanceNormalization",
    "LayerNormalization", "MaxPool", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum", "Softmax",
}  # fmt: skip
MOVES = {"Concat", "Gather", "Pad", "Resize", "ScatterND", "Transpose"}
FREE = {"Cast", "Constant", "Flatten", "Identity", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Unsqueeze"}
THIN = 32
"""Multiplications an output, below which tensor cores have nothing to do."""


class Kernel(NamedTuple):
    """What one launch does for one image: arithmetic, numbers read and written, and the outputs that share it out."""

    flops: int
    elements: int
    outputs: int
    moves: bool


def fuse_kernels(layers: Iterable[LayerCost]) -> list[Kernel]:
    """A network's kernels, as an engine builder fuses them.

    Products, reductions and moves are a kernel each; elementwise operators join the one before them; views are free.
    """
    kernels: list[Kernel] = []
    for layer in layers:
        if layer.op in FREE:
            continue
        if layer.op in PRODUCTS | REDUCTIONS | MOVES or not kernels:
            kernels.append(Kernel(layer.flops, layer.elements(1), math.prod(layer.output_shape), layer.op in MOVES))
    return kernels


class Constants(msgspec.Struct, frozen=True):
    """What is fitted; see the module.

    Attributes:
        efficiency: share of the arithmetic peak.
        staging: FLOPs a clock and SM at one byte an element.
        bandwidth: share of the memory's.
        launch_us: a kernel, whatever the clock.
        cycles: of the GPU, a kernel.
        thin: share of the CUDA cores' peak for kernels with few multiplications an output.
        tile: outputs that one multiprocessor works on at a time.
        moves: time of moves against the same bytes of other kernels, most of which are fused away.
    """

    efficiency: float
    staging: float
    bandwidth: float
    launch_us: float
    cycles: float
    thin: float
    tile: float
    moves: float


CONSTANTS = Constants(
    efficiency=0.7413,
    staging=3952.0,
    bandwidth=0.6639,
    launch_us=5.035,
    cycles=5464.0,
    thin=0.1018,
    tile=15100.0,
    moves=1.185,
)
INTERVAL = 1.75
"""Four of five published points, on boards left out of the fit, are within this factor of the estimate; each of the
four boards counts as much as another, however many points it has."""
COVERED_UNSEEN = 0.82
"""Of the points, by a factor that the errors of the other boards set: ``INTERVAL`` was set by those it is said of."""
MEDIAN_ERROR = 0.29
"""Of the same points; flattered, because the prior of the fit was the best of a dozen by it."""
MEDIAN_ERROR_WITHOUT_PRIOR = 0.54
INTERVAL_WITHOUT_PRIOR = 2.38
"""The same of a fit that is pulled nowhere: what the points alone tell of a board that is not among them."""
WORST_BOARD = "agx-orin-64gb"
WORST_BOARD_ERROR = 0.66
WORST_BOARD_COVERED = 0.4
"""Of the board that the others tell least of; its source does not say the power mode, the highest is taken for it. All
by ``tools/fit_predictor.py``."""


class Estimate(msgspec.Struct, frozen=True):
    """Estimated, not measured: milliseconds for one image, and the interval of ``INTERVAL``."""

    device: str
    power_mode: str
    precision: Precision
    latency_ms: float
    low_ms: float
    high_ms: float
    num_kernels: int
    sourced: bool


def kernel_ms(kernel: Kernel, device: Device, mode: PowerMode, precision: Precision, constants: Constants) -> float:
    """Milliseconds of one kernel."""
    size = ELEMENT_BYTES[precision]
    clock = mode.gpu_mhz * 1e6
    if kernel.flops < 2 * THIN * kernel.outputs:
        rate = constants.thin * device.cuda_flops
    else:
        rate = 1 / (1 / (constants.efficiency * device.peak_flops[precision]) + size / constants.staging)
    occupancy = min(max(kernel.outputs / constants.tile / mode.num_sms, 1 / mode.num_sms / 8), 1.0)
    weight = constants.moves if kernel.moves else 1.0
    compute = kernel.flops / (mode.num_sms * clock * rate * occupancy)
    memory = weight * kernel.elements * size / (constants.bandwidth * mode.memory_gbps * 1e9)
    fixed = weight * (constants.launch_us * 1e-6 + constants.cycles / clock)
    return (max(compute, memory) + fixed) * 1e3


def estimate_latency(
    costs: Iterable[Cost], device: Device, mode: PowerMode, precision: Precision, constants: Constants = CONSTANTS
) -> Estimate | None:
    """Estimate of networks that run one after the other, None where the GPU lacks the precision.

    Args:
        costs: of the networks.
        device: a module.
        mode: one of its power modes.
        precision: of the engine.
        constants: of the model.
    """
    if precision not in device.peak_flops:
        return None
    kernels = [kernel for cost in costs for kernel in fuse_kernels(cost.layers)]
    latency = sum(kernel_ms(kernel, device, mode, precision, constants) for kernel in kernels)
    return Estimate(
        device=device.name,
        power_mode=mode.name,
        precision=precision,
        latency_ms=latency,
        low_ms=latency / INTERVAL,
        high_ms=latency * INTERVAL,
        num_kernels=len(kernels),
        sourced=mode.sourced,
    )
