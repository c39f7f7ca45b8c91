"""ONNX Runtime's execution providers, with the settings that we give them.

Source: ONNX Runtime's documents of its CUDA and TensorRT execution providers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from ..bundle import Part
from ..errors import DeviceError, reason
from ..files import cache_folder
from ..tensors import TensorSpec, batch_is_fixed

if TYPE_CHECKING:
    from . import Execution

__all__ = ["CPU", "CUDA", "Provider", "tensorrt_provider"]


class Provider(NamedTuple):
    """One of ONNX Runtime's.

    Attributes:
        name: that ONNX Runtime knows it by.
        options: of it.
        max_batch: most rows of a run, where the provider needs to know.
    """

    name: str
    options: Mapping[str, str] = MappingProxyType({})
    max_batch: int | None = None


CPU = Provider("CPUExecutionProvider")
CUDA = Provider("CUDAExecutionProvider")


def tensorrt_provider(part: Part, onnx: bytes, execution: Execution) -> Provider:
    """TensorRT by ONNX Runtime: engines for batches up to the largest, kept in a folder of their own, which it makes.

    Args:
        part: whose inputs an open batch axis is bounded for.
        onnx: its model. ONNX Runtime knows an engine by the graph's names, and would take that of other weights.
        execution: precision and largest batch.

    Raises:
        DeviceError: the folder cannot be made.
    """
    folder = cache_folder() / "onnxruntime-tensorrt" / hashlib.sha256(onnx).hexdigest()[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(f"{folder}: engines cannot be kept there ({reason(error)})") from error
    options = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }
    if part.runs_in(execution.precision) == "fp16":
        options["trt_fp16_enable"] = "1"
    if part.runs_in(execution.precision) == "int8":  # the graph's own quantisation steps say which layers
        options["trt_int8_enable"] = "1"
    if batch_is_fixed(part.inputs):
        return Provider("TensorrtExecutionProvider", options)
    for bound, batch in (("min", 1), ("opt", execution.max_batch), ("max", execution.max_batch)):
        options[f"trt_profile_{bound}_shapes"] = ",".join(_shape(spec, batch) for spec in part.inputs)
    return Provider("TensorrtExecutionProvider", options, execution.max_batch)


def _shape(spec: TensorSpec, batch: int) -> str:
    """``features:8x12x16x16``."""
    return f"{spec.name}:" + "x".join(str(batch if size is None else size) for size in spec.shape)
