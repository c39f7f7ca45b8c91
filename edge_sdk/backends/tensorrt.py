"""TensorRT on an NVIDIA GPU: the engine is built on first use, and kept."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from statistics import median
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from ..engine.build import EngineOptions
from ..engine.cache import cached_engine
from ..engine.gpu import Gpu, cuda
from ..engine.library import load_library
from ..errors import BackendError, DeviceError
from ..tensors import Array, TensorSpec

__all__ = ["GpuTimes", "TensorRTBackend"]

_TYPES = {
    "BOOL": "BOOL",
    "FLOAT": "FP32",
    "HALF": "FP16",
    "INT32": "INT32",
    "INT64": "INT64",
    "INT8": "INT8",
    "UINT8": "UINT8",
}


WITH_LITTLE_MEMORY = "end what else runs, or lower the batch"


class GpuTimes(NamedTuple):
    """Milliseconds of one run, named as trtexec names them: the host's call that starts the layers, and CUDA events
    around the copies to the GPU, the layers, and the copies back. Copies take no time where memory is shared."""

    enqueue_ms: float
    h2d_ms: float
    gpu_compute_ms: float
    d2h_ms: float


class TensorRTBackend:
    """An ONNX model as an engine of this machine's GPU, with its buffers.

    On an integrated GPU the buffers are the CPU's own memory, mapped; elsewhere arrays are copied to the GPU and back.

    Args:
        name: of the part, for the engine's file.
        onnx: the model's content.
        options: what the engine is for; without targets.

    Raises:
        MissingExtra: TensorRT or pycuda is not installed.
        DeviceError: there is no GPU, or too little memory to build the engine.
        BackendError: TensorRT refuses the model or its engine.
    """

    def __init__(self, name: str, onnx: bytes, options: EngineOptions) -> None:
        library = load_library("tensorrt")
        gpu = Gpu.here()
        find = partial(cached_engine, name, onnx, options, library.name, library.version, gpu)
        found = find()
        self._cuda = cuda()
        self._lock = threading.Lock()
        self.max_batch = options.max_batch
        self._context = self._cuda.Device(0).retain_primary_context()
        with self._current():
            library.log.clear()
            self._runtime = library.new(library.module.Runtime)
            free, _ = self._cuda.mem_get_info()  # what the library itself takes is no part's
            self._engine = self._runtime.deserialize_cuda_engine(found.content)
            if self._engine is None and found.found and not library.log.wants_memory:
                # JetPack 6 tells three of the version's four numbers: an update may have changed the one that is not
                # in the key.
                found = find(anew=True)
                library.log.clear()
                self._engine = self._runtime.deserialize_cuda_engine(found.content)
            if self._engine is None:
                said = library.log.text()
                if library.log.wants_memory:
                    raise DeviceError(
                        f"TensorRT {library.version} has no memory for {name}: {said}; {WITH_LITTLE_MEMORY}"
                    )
                raise BackendError(f"TensorRT {library.version} does not load what it built, {found.path}: {said}")
            self._execution = self._engine.create_execution_context()
            if self._execution is None:
                raise DeviceError(
                    f"TensorRT {library.version} has no memory for {name}'s activations: {library.log.text()}; "
                    f"{WITH_LITTLE_MEMORY}"
                )
            self._stream = self._cuda.Stream()
            names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
            takes = library.module.TensorIOMode.INPUT
            specs = {each: self._spec(each) for each in names}
            self.inputs = tuple(specs[each] for each in names if self._engine.get_tensor_mode(each) == takes)
            self.outputs = tuple(specs[each] for each in names if self._engine.get_tensor_mode(each) != takes)
            self._buffers = {each: _Buffer(self._cuda, specs[each], self.max_batch, gpu.integrated) for each in names}
            for each, buffer in self._buffers.items():
                if not self._execution.set_tensor_address(each, buffer.pointer):
                    raise BackendError(f"TensorRT refuses the memory of {each!r}: {library.log.text()}")
            self.gpu_memory_bytes = max(free - self._cuda.mem_get_info()[0], 0)
            """Of the GPU's free memory, that engine, activations and buffers took; not kernels that load with a run."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with self._lock, self._current():
            views = self._start(feeds, lambda: None)
            self._stream.synchronize()
            return {name: view.copy() for name, view in views.items()}

    def timed_run(self, feeds: Mapping[str, Array]) -> GpuTimes:
        """One run, timed on the GPU.

        Raises:
            BackendError: as ``run``.
        """
        with self._lock, self._current():
            events, host = [self._cuda.Event() for _ in range(4)], list[float]()
            waiting = iter(events)

            def mark() -> None:
                next(waiting).record(self._stream)
                host.append(time.perf_counter())

            self._start(feeds, mark)
            self._stream.synchronize()
            steps = [after.time_since(before) for before, after in pairwise(events)]
            return GpuTimes((host[2] - host[1]) * 1e3, *steps)

    def layer_times(self, feeds: Mapping[str, Array], runs: int = 30) -> dict[str, float]:
        """Median milliseconds of each layer of the engine, by TensorRT's profiler; layers are fused ones.

        Raises:
            BackendError: as ``run``.
        """
        times: dict[str, list[float]] = defaultdict(list)
        base: Any = load_library("tensorrt").module.IProfiler

        class Profiler(base):  # type: ignore[misc]
            def __init__(self) -> None:
                base.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times[layer_name].append(ms)

        with self._lock:
            self._execution.profiler = Profiler()
        try:
            for _ in range(runs):
                self.run(feeds)
        finally:
            with self._lock:
                self._execution.profiler = None  # with one every run waits for itself
        return {name: median(each) for name, each in times.items()}

    def _start(self, feeds: Mapping[str, Array], mark: Callable[[], None]) -> dict[str, Array]:
        """Put a run on the stream; gives views that hold its outputs once the stream is through. ``mark`` is called
        before and after the copies to the GPU, the layers, and the copies back."""
        batch = len(next(iter(feeds.values())))
        if batch > self.max_batch:
            raise BackendError(f"the engine was built for batch {self.max_batch} at most, got {batch}")
        for spec in self.inputs:
            self._buffers[spec.name].fill(feeds[spec.name])
            if not self._execution.set_input_shape(spec.name, feeds[spec.name].shape):
                raise BackendError(f"TensorRT refuses {spec.name!r} of shape {feeds[spec.name].shape}")
        mark()
        for spec in self.inputs:
            self._buffers[spec.name].send(batch, self._stream)
        mark()
        log = load_library("tensorrt").log
        log.clear()  # of what earlier runs were warned of
        if not self._execution.execute_async_v3(self._stream.handle):
            raise BackendError(f"TensorRT failed: {log.text()}")
        mark()
        views = {spec.name: self._buffers[spec.name].read(batch, self._stream) for spec in self.outputs}
        mark()
        return views

    def close(self) -> None:
        # Detached while it is current: pycuda takes a released context off its own stack of them by itself. It stays on
        # CUDA's, which pycuda cannot change: an entry for each close, without effect.
        self._context.push()
        try:
            with suppress(self._cuda.Error):  # after a fault all fails, and the fault itself is what is to be told
                self._stream.synchronize()
            del self._execution, self._engine, self._runtime, self._stream
            for buffer in self._buffers.values():
                with suppress(self._cuda.Error):
                    buffer.free()
            self._buffers.clear()
        finally:
            self._context.detach()

    def __enter__(self) -> TensorRTBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _current(self) -> Iterator[None]:
        """CUDA's calls belong to the context of the calling thread; its errors become ours."""
        self._context.push()
        try:
            yield
        except self._cuda.MemoryError as error:
            raise DeviceError(f"the GPU has too little memory: {error}; {WITH_LITTLE_MEMORY}") from error
        except self._cuda.Error as error:
            raise BackendError(f"CUDA failed: {error}") from error
        finally:
            self._context.pop()

    def _spec(self, name: str) -> TensorSpec:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _TYPES:
            raise BackendError(f"tensor {name!r} has type {kind}, which the protocol cannot carry")
        shape = tuple(None if size == -1 else int(size) for size in self._engine.get_tensor_shape(name))
        return TensorSpec(name, _TYPES[kind], shape)


class _Buffer:
    """Memory of one tensor on both sides, for the largest batch; one and the same on an integrated GPU."""

    def __init__(self, driver: Any, spec: TensorSpec, max_batch: int, integrated: bool) -> None:
        self._driver = driver
        shape = (spec.shape[0] or max_batch, *spec.shape[1:])
        flags = driver.host_alloc_flags.DEVICEMAP if integrated else 0
        self.host: Array = driver.pagelocked_empty(shape, spec.numpy_dtype, mem_flags=flags)
        self._device = None if integrated else driver.mem_alloc(self.host.nbytes)
        mapped: Any = self.host.base
        self.pointer = int(mapped.get_device_pointer() if self._device is None else self._device)

    def fill(self, array: Array) -> None:
        np.copyto(self.host[: len(array)], array)

    def send(self, batch: int, stream: Any) -> None:
        if self._device is not None:
            self._driver.memcpy_htod_async(self._device, self.host[:batch], stream)

    def read(self, batch: int, stream: Any) -> Array:
        """A view that holds the answer once the stream is through."""
        view = self.host[:batch]
        if self._device is not None:
            self._driver.memcpy_dtoh_async(view, self._device, stream)
        return view

    def free(self) -> None:
        if self._device is not None:
            self._device.free()
        pinned: Any = self.host.base
        pinned.free()
