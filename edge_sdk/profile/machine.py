"""What machine and software a measurement was made with."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

import msgspec

from ..errors import EdgeSDKError
from ..jetson import RELEASE_FILE, l4t_version
from ..sysfs import read_text

if TYPE_CHECKING:
    from ..backends import Execution

__all__ = ["Accelerator", "Machine", "processor_name", "ran_on", "usable_cpus"]


class Machine(msgspec.Struct, frozen=True):
    """Named beside every absolute time."""

    system: str
    processor: str
    num_cpus: int
    python: str
    onnxruntime: str
    edgesdk: str
    l4t: str | None = None

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        import onnxruntime

        from .. import __version__

        return cls(
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            processor=processor_name(),
            num_cpus=usable_cpus(),
            python=platform.python_version(),
            onnxruntime=onnxruntime.__version__,  # of whichever distribution: a Jetson has its own
            edgesdk=__version__,
            l4t=l4t_version(read_text(RELEASE_FILE) or ""),
        )

    def __str__(self) -> str:
        l4t = f", L4T {self.l4t}" if self.l4t else ""
        return f"{self.processor}, {self.num_cpus} CPUs, {self.system}{l4t}, ONNX Runtime {self.onnxruntime}"


class Accelerator(msgspec.Struct, frozen=True):
    """The GPU that a backend runs on, as far as pycuda tells, and the library that drives it.

    Attributes:
        library: with its version.
        gpu: its name; None where pycuda is not installed.
        driver: the CUDA version that the driver is for; likewise.
        compute_capability: of the GPU, ``8.7``; likewise.
        num_sms: streaming multiprocessors that are on; likewise.
    """

    library: str
    gpu: str | None = None
    driver: str | None = None
    compute_capability: str | None = None
    num_sms: int | None = None

    @classmethod
    def of(cls, execution: Execution) -> Accelerator | None:
        """Of a backend that has started; None for the CPU."""
        if execution.backend == "onnxruntime":
            return None
        library = f"ONNX Runtime's {execution.backend.removeprefix('onnxruntime-')} provider"
        if execution.backend == "tensorrt":
            from ..engine.library import load_library

            library = f"TensorRT {load_library('tensorrt').version}"
        try:
            from ..engine.gpu import Gpu, cuda

            here, version = Gpu.here(), cuda().get_driver_version()
        except EdgeSDKError:
            return cls(library)
        driver = f"CUDA {version // 1000}.{version % 1000 // 10}"
        return cls(library, here.name, driver, here.compute_capability, here.num_sms)

    def __str__(self) -> str:
        if self.compute_capability is None:
            return self.library
        sm = self.compute_capability.replace(".", "")
        return f"{self.library}, {self.gpu} (sm_{sm}, {self.num_sms} SMs), driver of {self.driver}"


def ran_on(machine: Machine, accelerator: Accelerator | None) -> str:
    """Library, GPU and machine, in a line."""
    return f"{accelerator}, {machine}" if accelerator else str(machine)


def usable_cpus() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """From the device tree, which names a Jetson, else /proc/cpuinfo, which names a PC's CPU."""
    try:
        with open("/proc/device-tree/model", "rb") as file:
            return file.read().rstrip(b"\0").decode()
    except (OSError, UnicodeDecodeError):
        pass
    try:
        with open("/proc/cpuinfo") as file:
            names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
            return next(names, platform.machine())
    except OSError:
        return platform.processor() or platform.machine()
