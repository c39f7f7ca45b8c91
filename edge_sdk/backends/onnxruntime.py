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
    from onnxruntime import InferenceSession, NodeArg, SessionOptions

__all__ = ["OnnxRuntimeBackend", "session_options"]

_TYPES = {
    "bool": "BOOL",
    "float": "FP32",
    "float16": "FP16",
    "double": "FP64",
    **{str(dtype): name for name, dtype in DTYPES.items() if dtype.kind in "iu"},
}


LAYERS = ("Conv", "Gemm", "MatMul", "Attention", "LSTM", "GRU")
"""In the names of operators that compute: where these run is what a backend is chosen for."""

ASSIGNMENTS_SINCE = "1.24"
"""The ONNX Runtime that first says which provider runs what; on the package index it asks for Python 3.11."""

ERROR, FATAL = 3, 4
"""Of ONNX Runtime's levels of its log."""

ON_A_JETSON = (
    "on a Jetson it comes for JetPack's Python from NVIDIA's Jetson AI Lab, not from the package index of others"
)


def session_options(num_threads: int | None) -> SessionOptions:
    """``onnxruntime.SessionOptions`` that every session here has.

    Args:
        num_threads: that an operator may use; None lets ONNX Runtime choose.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERROR
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    # Idle threads that spin would take the cores from whatever else runs on the device.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


class OnnxRuntimeBackend:
    """An ONNX model in an inference session.

    Args:
        model: the ONNX file's content.
        num_threads: that one operator may use; None lets ONNX Runtime take all physical cores.
        provider: that runs the model.

    Raises:
        BackendError: ONNX Runtime refuses the model, or its provider leaves layers to the CPU, or a part of it of
            which this ONNX Runtime cannot tell whether it has layers.
        DeviceError: this ONNX Runtime has no such provider, or it does not start; no other takes its place.
    """

    def __init__(self, model: bytes, num_threads: int | None = None, provider: Provider = CPU) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise BackendError("ONNX Runtime is not installed: pip install onnxruntime") from error

        options = session_options(num_threads)
        available = onnxruntime.get_available_providers()
        if provider.name not in available:
            raise DeviceError(
                f"ONNX Runtime {onnxruntime.__version__} here has {', '.join(available)}, not {provider.name}; "
                f"{ON_A_JETSON if is_jetson() else 'pip install onnxruntime-gpu in place of onnxruntime'}"
            )
        try:
            self._session, alone = _open(model, options, provider)
        except Exception as error:  # the library raises classes of its own with no common base
            kept = provider.options.get("trt_engine_cache_path")  # which ONNX Runtime writes in place
            hint = f"; if an engine in {kept} was cut off as it was written, remove that folder" if kept else ""
            raise BackendError(f"ONNX Runtime {onnxruntime.__version__} refuses the model: {error}{hint}") from error
        # Kept for a change of providers, which never comes: as much memory as the weights.
        self._session._model_bytes = None
        if self._session.get_providers()[0] != provider.name:
            raise DeviceError(
                f"{provider.name} does not start here: ONNX Runtime finds no GPU, or not the CUDA, cuDNN or TensorRT "
                f"libraries that {onnxruntime.__version__} was built for"
            )
        if not alone:
            _check_assigned(self._session, provider)
        self.max_batch = provider.max_batch
        self.inputs = tuple(_spec(arg) for arg in self._session.get_inputs())
        self.outputs = tuple(_spec(arg) for arg in self._session.get_outputs())
        self._output_names = [spec.name for spec in self.outputs]
        # What fails in a run is raised; written to standard error as well, it may have values of tensors in it.
        self._quietly = onnxruntime.RunOptions()
        self._quietly.log_severity_level = FATAL

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            outputs = self._session.run(self._output_names, feeds, self._quietly)
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


def _open(model: bytes, options: SessionOptions, provider: Provider) -> tuple[InferenceSession, bool]:
    """A session, and whether the provider runs everything in it; where it cannot, the CPU runs the rest."""
    from onnxruntime import InferenceSession

    given = [(provider.name, dict(provider.options))]
    if provider.name == CPU.name:
        return InferenceSession(model, options, providers=given, enable_fallback=0), True
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        return InferenceSession(model, options, providers=given, enable_fallback=0), True
    except Exception as error:
        if "assigned to the default CPU EP" not in str(error):
            raise
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return InferenceSession(model, options, providers=[*given, (CPU.name, {})], enable_fallback=0), False


def _check_assigned(session: InferenceSession, provider: Provider) -> None:
    """A GPU's provider may leave the arithmetic of shapes to the CPU, and no layer.

    Raises:
        BackendError: it has left it some, or this ONNX Runtime cannot tell.
    """
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        import onnxruntime

        raise BackendError(
            f"{provider.name} leaves a part of the graph to the CPU, and ONNX Runtime {onnxruntime.__version__} cannot "
            f"tell whether that has layers; {ASSIGNMENTS_SINCE} or later can"
        )
    left = [node.name for each in tell() if each.ep_name == CPU.name for node in each.get_nodes()
            if any(kind in node.op_type for kind in LAYERS)]  # fmt: skip
    if left:
        raise BackendError(f"{provider.name} leaves {len(left)} layers to the CPU, such as {', '.join(left[:3])}")


def _spec(arg: NodeArg) -> TensorSpec:
    dtype = _TYPES.get(arg.type.removeprefix("tensor(").removesuffix(")"))
    if dtype is None:
        raise BackendError(f"tensor {arg.name!r} has type {arg.type}, which the protocol cannot carry")
    return TensorSpec(arg.name, dtype, tuple(size if isinstance(size, int) else None for size in arg.shape))
