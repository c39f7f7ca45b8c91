"""ONNX Runtime, on the CPU or by another of its execution providers."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from ..errors import BackendError, DeviceError
from ..jetson import is_jetson
from ..tensors import DTYPES, Array, TensorSpec
from .providers import CPU, Provider

if TYPE_CHECKING:
    from onnxruntime import NodeArg

__all__ = ["OnnxRuntimeBackend"]

_TYPES = {
    "bool": "BOOL",
    "float": "FP32",
    "float16": "FP16",
    "double": "FP64",
    **{str(dtype): name for name, dtype in DTYPES.items() if dtype.kind in "iu"},
}


ON_A_JETSON = (
    "on a Jetson it comes for JetPack's Python from NVIDIA's Jetson AI Lab, not from the package index of others"
)


class OnnxRuntimeBackend:
    """An ONNX model in an inference session.

    Args:
        model: the ONNX file's content.
        num_threads: that one operator may use; None lets ONNX Runtime take all physical cores.
        provider: that runs the model.

    Raises:
        BackendError: ONNX Runtime refuses the model.
        DeviceError: this ONNX Runtime has no such provider, or it does not start; no other takes its place.
    """

    def __init__(self, model: bytes, num_threads: int | None = None, provider: Provider = CPU) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise BackendError("ONNX Runtime is not installed: pip install onnxruntime") from error

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        # Idle threads that spin would take the cores from whatever else runs on the device.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        available = onnxruntime.get_available_providers()
        if provider.name not in available:
            raise DeviceError(
                f"ONNX Runtime {onnxruntime.__version__} here has {', '.join(available)}, not {provider.name}; "
                f"{ON_A_JETSON if is_jetson() else 'pip install onnxruntime-gpu in place of onnxruntime'}"
            )
        # What a GPU's provider cannot run, such as the arithmetic of shapes, runs on the CPU.
        chosen = [provider] if provider.name == CPU.name else [provider, CPU]
        providers = [(each.name, dict(each.options)) for each in chosen]
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)
        except Exception as error:  # the library raises classes of its own with no common base
            raise BackendError(f"ONNX Runtime {onnxruntime.__version__} refuses the model: {error}") from error
        # Kept for a change of providers, which never comes: as much memory as the weights.
        self._session._model_bytes = None
        if self._session.get_providers()[0] != provider.name:
            raise DeviceError(
                f"{provider.name} does not start here: ONNX Runtime finds no GPU, or not the CUDA, cuDNN or TensorRT "
                f"libraries that {onnxruntime.__version__} was built for"
            )
        self.max_batch = provider.max_batch
        self.inputs = tuple(_spec(arg) for arg in self._session.get_inputs())
        self.outputs = tuple(_spec(arg) for arg in self._session.get_outputs())
        self._output_names = [spec.name for spec in self.outputs]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            outputs = self._session.run(self._output_names, feeds)
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed: {error}") from error
        return dict(zip(self._output_names, outputs, strict=True))

    def close(self) -> None:
        del self._session

    def __enter__(self) -> OnnxRuntimeBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _spec(arg: NodeArg) -> TensorSpec:
    dtype = _TYPES.get(arg.type.removeprefix("tensor(").removesuffix(")"))
    if dtype is None:
        raise BackendError(f"tensor {arg.name!r} has type {arg.type}, which the protocol cannot carry")
    return TensorSpec(arg.name, dtype, tuple(size if isinstance(size, int) else None for size in arg.shape))
