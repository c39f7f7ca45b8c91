"""Lower precisions, written into the ONNX files themselves: what every runtime then runs is the same."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_sdk.bundle import Part
from edge_sdk.errors import ConfigError, needs_extra

from .onnx import checked_onnx
from .placement import FUSION
from .quantize import Quantized, quantize
from .shipped import ShippedGraphs

LowPrecision = Literal["fp16", "int8"]


def lowered(
    graphs: ShippedGraphs,
    parts: Sequence[Part],
    files: Mapping[str, bytes],
    precision: LowPrecision,
    calibration: NDArray[np.uint8] | None,
) -> Quantized:
    """All parts but the fusion in a lower precision, the undefended encoder to compare with included.

    Args:
        graphs: the torch side.
        parts: of the placement graph.
        files: ONNX by part, in float32.
        precision: the lower one.
        calibration: uint8 ``(N, H, W, 3)``, for int8.

    Raises:
        ConfigError: int8 without calibration images.
        BackendError: a part cannot be converted.
    """
    if precision == "fp16":
        return Quantized({part: to_fp16(files[part]) for part in files if part != FUSION}, [])
    if calibration is None:
        raise ConfigError("int8 needs images to calibrate on: give the training data to --data")
    return quantize(graphs, parts, files, calibration)


def to_fp16(model: bytes) -> bytes:
    """The model in float16, inputs and outputs in their own types.

    Raises:
        BackendError: the converted model is not valid ONNX.
    """
    with needs_extra("export", "a float16 export"):
        import onnx
        import onnx_ir
        from onnx_ir.passes.common import TopologicalSortPass
        from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the float32 number .* will be truncated to", UserWarning)
        converted = convert_float_to_float16(onnx.load_from_string(model), keep_io_types=True)
    # The casts of inputs come last, where ONNX wants every node after those it takes from.
    return checked_onnx(onnx_ir.to_proto(TopologicalSortPass()(onnx_ir.from_proto(converted)).model))
