"""What machine and software a measurement was made with."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import msgspec

__all__ = ["Machine"]


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
        from .. import __version__

        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cls(
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            processor=_processor(),
            num_cpus=usable,
            python=platform.python_version(),
            onnxruntime=metadata.version("onnxruntime"),
            edgesdk=__version__,
        )

    def __str__(self) -> str:
        return f"{self.processor}, {self.num_cpus} CPUs, {self.system}, ONNX Runtime {self.onnxruntime}"


def _processor() -> str:
    """The device tree names a Jetson, /proc/cpuinfo a PC."""
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
