"""What machine and software a measurement was made with."""

from __future__ import annotations

import os
import platform

import msgspec

__all__ = ["Machine", "processor_name", "usable_cpus"]


class Machine(msgspec.Struct, frozen=True):
    """Named beside every absolute time."""

    system: str
    processor: str
    num_cpus: int
    python: str
    onnxruntime: str
    edgesdk: str

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
        )

    def __str__(self) -> str:
        return f"{self.processor}, {self.num_cpus} CPUs, {self.system}, ONNX Runtime {self.onnxruntime}"


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
