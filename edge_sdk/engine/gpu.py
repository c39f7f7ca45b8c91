"""The GPU that an engine belongs to."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import msgspec

from ..errors import DeviceError, MissingExtra

__all__ = ["Gpu", "cuda"]


class Gpu(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What engines differ by.

    Attributes:
        name: of the model.
        compute_capability: ``8.7``.
        num_sms: streaming multiprocessors that are on; a Jetson's power mode switches some off.
        integrated: whether it shares the CPU's memory.
    """

    name: str
    compute_capability: str
    num_sms: int
    integrated: bool

    @classmethod
    def here(cls) -> Gpu:
        """The first CUDA device of this machine.

        Raises:
            MissingExtra: pycuda is not installed.
            DeviceError: CUDA finds no device, or cannot be loaded.
        """
        driver = cuda()
        device = driver.Device(0)
        attributes = driver.device_attribute
        major, minor = device.compute_capability()
        return cls(
            name=device.name(),
            compute_capability=f"{major}.{minor}",
            num_sms=device.get_attribute(attributes.MULTIPROCESSOR_COUNT),
            integrated=bool(device.get_attribute(attributes.INTEGRATED)),
        )


def cuda() -> Any:
    """pycuda's driver, initialised.

    Raises:
        MissingExtra: pycuda is not installed.
        DeviceError: CUDA finds no device, or cannot be loaded; pycuda is damaged.
    """
    try:
        driver: Any = import_module("pycuda.driver")
    except ModuleNotFoundError as error:
        if error.name != "pycuda":
            raise DeviceError(
                f"pycuda is installed and damaged ({error}): pip install --force-reinstall --no-cache-dir pycuda, with "
                "CUDA's compiler in reach"
            ) from error
        raise MissingExtra(
            "pycuda is not installed; only --backend tensorrt and engines for this machine's GPU need it. It is "
            "compiled, with CUDA's nvcc in PATH: pip install pycuda (on a Jetson: CUDA_ROOT=/usr/local/cuda "
            "PATH=/usr/local/cuda/bin:$PATH pip install pycuda)"
        ) from error
    except ImportError as error:
        raise DeviceError(f"pycuda cannot load CUDA's driver, is there an NVIDIA GPU? {error}") from error
    try:
        driver.init()
        count = driver.Device.count()
    except driver.Error as error:
        raise DeviceError(f"CUDA finds no GPU on this machine: {error}") from error
    if not count:
        raise DeviceError("CUDA finds no GPU on this machine")
    return driver
