"""Lower precisions, written into the ONNX files themselves: what every runtime then runs is the same.

float16 by casting weights and activations, with inputs and outputs as they were; int8 by quantising the inputs and
weights of convolutions and matrix products, symmetrically around zero, as TensorRT wants it (explicit Q/DQ nodes).
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.errors import BackendError, ConfigError, needs_extra

from .shipped import ShippedGraphs

LowPrecision = Literal["fp16", "int8"]
CALIBRATION_BATCH = 16
QUANTIZED = ["Conv", "Gemm", "MatMul"]


def lowered(
    graphs: ShippedGraphs,
    files: Mapping[str, bytes],
    precision: LowPrecision,
    calibration: NDArray[np.uint8] | None,
) -> dict[str, bytes]:
    """All parts but the fusion in a lower precision, the undefended encoder to compare with included.

    Args:
        graphs: the torch side.
        files: ONNX by part, in float32.
        precision: the lower one.
        calibration: uint8 ``(N, H, W, 3)``, for int8.

    Raises:
        ConfigError: int8 without calibration images.
        BackendError: a part cannot be converted.
    """
    names = graphs.names
    parts = [part for part in files if part != "fusion"]
    if precision == "fp16":
        return {part: to_fp16(files[part]) for part in parts}
    if calibration is None:
        raise ConfigError("int8 needs images to calibrate on: give the training data to --data")
    feeds: dict[str, list[dict[str, NDArray[Any]]]] = {part: [] for part in parts}
    with OnnxRuntimeBackend(files["encoder"]) as encoder:
        batch = encoder.inputs[0].shape[0] or CALIBRATION_BATCH
        for start in range(0, len(calibration) - batch + 1, batch):
            pixels = calibration[start : start + batch]
            drawn = graphs.draw_noise(torch.from_numpy(pixels))
            feed = {"image": pixels, **{name: n.numpy() for name, n in zip(names.noises, drawn, strict=False)}}
            sent = encoder.run(feed)
            feeds["encoder"].append(feed)
            if "reference" in feeds:
                feeds["reference"].append({"image": pixels})
            for tail, share in zip(names.tails, names.shares, strict=True):
                feeds[tail].append({share: sent[share]})
    return {part: to_int8(files[part], feeds[part]) for part in parts}


def to_fp16(model: bytes) -> bytes:
    """The model in float16, inputs and outputs in their own types.

    Raises:
        BackendError: a weight is too large for float16.
    """
    with needs_extra("export", "a float16 export"):
        import onnx
        import onnx_ir
        from onnx_ir.passes.common import TopologicalSortPass
        from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # weights that do not fit are cut off with a warning
        warnings.filterwarnings("ignore", "the float32 number .* will be truncated to", UserWarning)
        converted = convert_float_to_float16(onnx.load_from_string(model), keep_io_types=True)
    # The casts of inputs come last, where ONNX wants every node after those it takes from.
    return _checked(onnx_ir.to_proto(TopologicalSortPass()(onnx_ir.from_proto(converted)).model))


def to_int8(model: bytes, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> bytes:
    """The model with 8-bit convolutions and matrix products.

    Args:
        model: in float32.
        feeds: what it is fed with, by input; the ranges of its activations over all of these are what 8 bits hold.

    Raises:
        BackendError: ONNX Runtime's quantiser refuses the model.
    """
    with needs_extra("export", "an int8 export"):
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds: Iterator[Mapping[str, NDArray[Any]]] = iter(feeds)

        def get_next(self) -> Any:
            return next(self._feeds, None)

    with tempfile.TemporaryDirectory() as name:
        plain, folded, quantized = (Path(name) / file for file in ("plain.onnx", "folded.onnx", "int8.onnx"))
        plain.write_bytes(model)
        try:
            quant_pre_process(str(plain), str(folded), skip_symbolic_shape=True)
            quantize_static(
                str(folded),
                str(quantized),
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=QUANTIZED,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
            )
        except Exception as error:  # the quantiser raises classes without a common base
            raise BackendError(f"ONNX Runtime's quantiser refuses the model: {error}") from error
        return _checked(onnx.load(quantized))


def _checked(model: Any) -> bytes:
    import onnx

    used = {node.domain for node in model.graph.node}
    for unused in [entry for entry in model.opset_import if entry.domain not in used]:  # the quantiser's, for plenty
        model.opset_import.remove(unused)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise BackendError(f"the converted model is not valid ONNX: {error}") from error
    content: bytes = model.SerializeToString(deterministic=True)
    return content
