"""TensorRT and pycuda as far as our runner touches them, over the CPU: memory is numpy's, an engine is ONNX Runtime's.

For what a GPU is not needed for: which memory a tensor lies in, what is copied where and when, batches and shapes.
"""

import ctypes
from types import SimpleNamespace

import numpy as np

from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.engine.library import MessageLog, TensorRT

NAMES = {"FP32": "FLOAT", "UINT8": "UINT8"}


class Driver(SimpleNamespace):
    """pycuda.driver. ``done`` are the calls, in their order."""

    class Error(Exception):
        """As pycuda's."""

    class MemoryError(Error):
        """As pycuda's."""

    host_alloc_flags = SimpleNamespace(DEVICEMAP=2)

    def __init__(self, *, integrated):
        self.done, self.memory, self.pushed, self.free_bytes = [], {}, 0, 10**9
        self.integrated = integrated

    def Device(self, number):
        return SimpleNamespace(retain_primary_context=lambda: self)

    def push(self):
        self.pushed += 1

    def pop(self):
        self.pushed -= 1

    detach = pop

    def get_driver_version(self):
        return 12060

    def mem_get_info(self):
        return self.free_bytes, 10**9

    def Stream(self):
        return SimpleNamespace(handle=7, synchronize=lambda: self.done.append("synchronize"))

    def Event(self):
        driver, at = self, []

        class Event:
            def record(self, stream):
                at.append(len(driver.done))

            def time_since(self, before):
                return float(at[0] - before.at[0])

        event = Event()
        event.at = at
        return event

    def pagelocked_empty(self, shape, dtype, mem_flags):
        assert mem_flags == (2 if self.integrated else 0)
        return np.asarray(_Pinned(self, np.zeros(shape, dtype)))

    def mem_alloc(self, num_bytes):
        assert not self.integrated
        self.free_bytes -= num_bytes
        content = np.zeros(num_bytes, np.uint8)
        pointer = content.ctypes.data
        self.memory[pointer] = content
        freed = lambda: self.memory.pop(pointer)  # noqa: E731
        return type("Allocation", (), {"__int__": lambda _: pointer, "free": lambda _: freed()})()

    def memcpy_htod_async(self, device, host, stream):
        assert self.pushed > 0
        self.done.append("to the GPU")
        ctypes.memmove(int(device), host.ctypes.data, host.nbytes)

    def memcpy_dtoh_async(self, host, device, stream):
        assert self.pushed > 0
        self.done.append("from the GPU")
        ctypes.memmove(host.ctypes.data, int(device), host.nbytes)


class _Pinned:
    """What an array of pinned memory has as its base."""

    def __init__(self, driver, content):
        self._driver, self._content = driver, content
        self.__array_interface__ = content.__array_interface__
        driver.memory[content.ctypes.data] = content

    def get_device_pointer(self):
        assert self._driver.integrated  # memory that is not mapped has none
        return self._content.ctypes.data

    def free(self):
        del self._driver.memory[self._content.ctypes.data]


def library(driver):
    """TensorRT, whose engines are ONNX models."""
    log = MessageLog()

    class Context:
        profiler = None

        def __init__(self, onnx):
            self.backend, self.addresses, self.shapes = OnnxRuntimeBackend(onnx), {}, {}

        def set_tensor_address(self, name, pointer):
            self.addresses[name] = pointer
            return True

        def set_input_shape(self, name, shape):
            self.shapes[name] = tuple(shape)
            wanted = next(spec.shape for spec in self.backend.inputs if spec.name == name)
            return all(size in (None, got) for size, got in zip(wanted, shape, strict=True))

        def execute_async_v3(self, handle):
            assert handle == 7
            driver.done.append("layers")
            feeds = {}
            for spec in self.backend.inputs:
                shape = self.shapes[spec.name]
                content = (ctypes.c_char * (int(np.prod(shape)) * spec.numpy_dtype.itemsize)).from_address(
                    self.addresses[spec.name]
                )
                feeds[spec.name] = np.frombuffer(content, spec.numpy_dtype).reshape(shape).copy()
            for name, answer in self.backend.run(feeds).items():
                ctypes.memmove(self.addresses[name], np.ascontiguousarray(answer).ctypes.data, answer.nbytes)
            if self.profiler is not None:
                self.profiler.report_layer_time("node_conv2d + node_relu", 0.25)
            return True

    class Engine:
        def __init__(self, onnx):
            self.onnx = onnx
            with OnnxRuntimeBackend(onnx) as backend:
                self.specs = {spec.name: spec for spec in (*backend.inputs, *backend.outputs)}
                self.takes = {spec.name for spec in backend.inputs}
            self.num_io_tensors = len(self.specs)

        def get_tensor_name(self, index):
            return list(self.specs)[index]

        def get_tensor_mode(self, name):
            return "INPUT" if name in self.takes else "OUTPUT"

        def get_tensor_dtype(self, name):
            return SimpleNamespace(name=NAMES[self.specs[name].dtype])

        def get_tensor_shape(self, name):
            return [-1 if size is None else size for size in self.specs[name].shape]

        def create_execution_context(self):
            driver.free_bytes -= 1000
            return Context(self.onnx)

    class Runtime:
        def __init__(self, logger):
            pass

        def deserialize_cuda_engine(self, content):
            return None if content == b"damaged" else Engine(content)

    module = SimpleNamespace(
        Runtime=Runtime, IProfiler=type("IProfiler", (), {}), TensorIOMode=SimpleNamespace(INPUT="INPUT")
    )
    return TensorRT("tensorrt", module, "10.3.0", None, log)
