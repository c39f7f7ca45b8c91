"""Inference libraries behind one protocol: a backend is ready once constructed, runs arrays, and is closed."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, get_args

from ..bundle import Part, PartyBundle, Precision
from ..engine.build import EngineOptions
from ..errors import ConfigError
from ..tensors import Array, TensorSpec

__all__ = ["DEFAULT_EXECUTION", "Backend", "BackendName", "Execution", "open_backend"]

BackendName = Literal["onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"]
"""ONNX Runtime on the CPU, or on an NVIDIA GPU by its CUDA or TensorRT provider; TensorRT itself."""


class Backend(Protocol):
    """One loaded model. Feeds must fit ``inputs``: the caller checks them once (``tensors.check_feeds``)."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def max_batch(self) -> int | None:
        """Most rows of a run, where there is a limit."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises BackendError where the library fails."""

    def close(self) -> None:
        """Free the model; it cannot run again."""

    def __enter__(self) -> Backend: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Execution(NamedTuple):
    """How a party runs its parts.

    Attributes:
        backend: the library, and on what.
        precision: that the bundle was exported in: ``fp32``, ``fp16`` or ``int8``.
        num_threads: that an operator may use on the CPU; None lets ONNX Runtime choose.
        max_batch: largest batch that TensorRT builds for; ONNX Runtime by itself takes any.
    """

    backend: BackendName = "onnxruntime"
    precision: Precision = "fp32"
    num_threads: int | None = None
    max_batch: int = 1

    @property
    def builds_engines(self) -> bool:
        """Whether the first use builds TensorRT's engines, which takes minutes."""
        return "tensorrt" in self.backend


DEFAULT_EXECUTION = Execution()


def open_backend(part: Part, bundle: PartyBundle, execution: Execution) -> Backend:
    """Load a part of a party with the library that was asked for, and no other.

    Raises:
        ConfigError: no such library.
        BundleError: the party was not exported in this precision.
        BackendError, DeviceError, MissingExtra: as the library's class says.
    """
    onnx = bundle.onnx(part, execution.precision)
    library, _, provider = execution.backend.partition("-")
    if library == "onnxruntime" and provider in ("", "cuda", "tensorrt"):
        from .onnxruntime import OnnxRuntimeBackend
        from .providers import CPU, CUDA, tensorrt_provider

        found = CPU if not provider else CUDA if provider == "cuda" else tensorrt_provider(part, onnx, execution)
        return OnnxRuntimeBackend(onnx, execution.num_threads, found)
    if execution.backend == "tensorrt":
        from .tensorrt import TensorRTBackend

        options = EngineOptions(precision=part.runs_in(execution.precision), max_batch=execution.max_batch)
        return TensorRTBackend(part.name, onnx, options)
    raise ConfigError(f"no backend {execution.backend!r}; available: {', '.join(get_args(BackendName))}")
