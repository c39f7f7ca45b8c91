"""NVIDIA Jetson modules and their power modes: what bounds the time of a network on them.

A power mode switches streaming multiprocessors (SMs) off and caps the clocks of GPU and memory, so the key of every
figure is module and mode. Sources: data sheets and shipped nvpmodel configurations (for Orin as mirrored in LineageOS's
android_device_nvidia_concord, with the Super modes of JetPack 6.2, and the 7 W ones of the firmware before it);
``sourced`` is False where a figure of a mode was found in no document. AGX Orin's nvpmodel puts MODE_ before the watts.
"""

from __future__ import annotations

import math

import msgspec

from ..bundle import Precision
from ..errors import ConfigError

__all__ = ["DEVICES", "ELEMENT_BYTES", "Device", "PowerMode", "find_device", "modules_in"]

ELEMENT_BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "int8": 1}
"""Of one number."""


class PowerMode(msgspec.Struct, frozen=True):
    """Attributes:
    name: as nvpmodel prints it, less AGX Orin's MODE_.
    num_sms: that are on.
    gpu_mhz: highest clock.
    memory_gbps: highest bandwidth, 10^9 bytes a second.
    sourced: whether all of that was found in a document.
    """

    name: str
    num_sms: int
    gpu_mhz: int
    memory_gbps: float
    sourced: bool = True

    def is_called(self, name: str) -> bool:
        """In any case, with or without the MODE_ of some."""
        return self.name.lower() == name.lower().removeprefix("mode_")


class Device(msgspec.Struct, frozen=True):
    """A module.

    Attributes:
        name: for the command line.
        title: for people.
        compute_capability: of its GPU.
        cuda_flops: FLOPs a clock and SM of its CUDA cores in float32.
        peak_flops: FLOPs a clock and SM, dense, by precision: tensor cores where there are any. ``fp32`` is TF32 from
            Ampere on, as TensorRT builds it unless told otherwise. A precision that the GPU lacks is missing.
        modes: its power modes, the highest first.
    """

    name: str
    title: str
    compute_capability: str
    cuda_flops: int
    peak_flops: dict[Precision, int]
    modes: tuple[PowerMode, ...]

    def mode(self, name: str | None) -> PowerMode:
        """The mode of that name; None is the highest.

        Raises:
            ConfigError: there is none.
        """
        if name is None:
            return self.modes[0]
        for mode in self.modes:
            if mode.is_called(name):
                return mode
        raise ConfigError(f"{self.name} has no power mode {name!r}; it has {', '.join(m.name for m in self.modes)}")


_MAXWELL: dict[Precision, int] = {"fp32": 256, "fp16": 512}
_VOLTA: dict[Precision, int] = {"fp32": 128, "fp16": 1024, "int8": 2048}
_AMPERE: dict[Precision, int] = {"fp32": 1024, "fp16": 2048, "int8": 4096}
_BLACKWELL: dict[Precision, int] = {"fp32": 4096, "fp16": 8192, "int8": 8192}
CLOCK_TOLERANCE = 0.03
"""Of a clock: 612 MHz are 624.75 in the tables of some releases."""

CAPPED = 2133 / 3199
"""Of the memory's bandwidth, in modes that cap its clock at 2133 MHz."""

_ALL = (
    Device(
        "nano", "Jetson Nano (2019)", "5.3", 256, _MAXWELL,
        (PowerMode("MAXN", 1, 921, 25.6), PowerMode("5W", 1, 640, 25.6)),
    ),
    Device(
        "tx2", "Jetson TX2", "6.2", 256, _MAXWELL,
        (PowerMode("MAXN", 2, 1300, 59.7), PowerMode("MAXP", 2, 1120, 59.7), PowerMode("MAXQ", 2, 850, 59.7, False)),
    ),
    Device("xavier-nx", "Jetson Xavier NX", "7.2", 128, _VOLTA, (PowerMode("20W", 6, 1100, 59.7),)),
    Device("agx-xavier", "Jetson AGX Xavier", "7.2", 128, _VOLTA, (PowerMode("MAXN", 8, 1377, 136.5),)),
    Device(
        "orin-nano-4gb", "Jetson Orin Nano 4 GB", "8.7", 256, _AMPERE,
        (
            PowerMode("MAXN_SUPER", 4, 1020, 51.0, False), PowerMode("25W", 4, 1020, 51.0, False),
            PowerMode("10W", 4, 612, 51.0 * CAPPED), PowerMode("7W_AI", 4, 408, 51.0 * CAPPED),
        ),
    ),
    Device(
        "orin-nano-8gb", "Jetson Orin Nano 8 GB", "8.7", 256, _AMPERE,
        (
            PowerMode("MAXN_SUPER", 8, 1020, 102.0), PowerMode("25W", 8, 918, 102.0), PowerMode("15W", 8, 612, 68.0),
            PowerMode("7W", 4, 408, 68.0),
        ),
    ),
    Device(
        "orin-nx-8gb", "Jetson Orin NX 8 GB", "8.7", 256, _AMPERE,
        (
            PowerMode("MAXN_SUPER", 8, 1173, 102.4, False), PowerMode("40W", 8, 1173, 102.4),
            PowerMode("MAXN", 8, 765, 102.4, False), PowerMode("20W", 8, 408, 102.4), PowerMode("15W", 4, 612, 102.4),
            PowerMode("10W", 4, 612, 102.4 * CAPPED),
        ),
    ),
    Device(
        "orin-nx-16gb", "Jetson Orin NX 16 GB", "8.7", 256, _AMPERE,
        (
            PowerMode("MAXN_SUPER", 8, 1173, 102.4), PowerMode("40W", 8, 1173, 102.4), PowerMode("MAXN", 8, 918, 102.4),
            PowerMode("25W", 8, 408, 102.4), PowerMode("15W", 4, 612, 102.4), PowerMode("10W", 4, 612, 102.4 * CAPPED),
        ),
    ),
    Device(
        "agx-orin-32gb", "Jetson AGX Orin 32 GB", "8.7", 256, _AMPERE,
        (
            PowerMode("MAXN", 14, 930, 204.8, False), PowerMode("40W", 14, 816, 204.8),
            PowerMode("30W", 8, 612, 204.8), PowerMode("15W", 6, 408, 204.8 * CAPPED),
        ),
    ),
    Device(
        "agx-orin-64gb", "Jetson AGX Orin 64 GB", "8.7", 256, _AMPERE,
        (
            PowerMode("MAXN", 16, 1300, 204.8), PowerMode("50W", 16, 816, 204.8), PowerMode("30W", 8, 612, 204.8),
            PowerMode("15W", 6, 408, 204.8 * CAPPED),
        ),
    ),
    Device(
        "agx-thor", "Jetson AGX Thor (T5000)", "11.0", 256, _BLACKWELL, (PowerMode("MAXN", 20, 1575, 273.0, False),),
    ),
)  # fmt: skip

DEVICES = {device.name: device for device in _ALL}


def find_device(name: str) -> Device:
    """The module of that name.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    if name not in DEVICES:
        raise ConfigError(f"no device {name!r}; available: {', '.join(DEVICES)}")
    return DEVICES[name]


def modules_in(
    power_mode: str, compute_capability: str, num_sms: int | None, gpu_mhz: int
) -> list[tuple[Device, PowerMode]]:
    """The modules that in a mode of this name have such a GPU: what a Jetson tells of itself is no module's name.

    Args:
        power_mode: as nvpmodel prints it.
        compute_capability: of the GPU.
        num_sms: that are on.
        gpu_mhz: highest clock allowed.
    """
    return [
        (device, mode)
        for device in _ALL
        for mode in device.modes
        if device.compute_capability == compute_capability
        and mode.is_called(power_mode)
        and mode.num_sms == num_sms
        and math.isclose(mode.gpu_mhz, gpu_mhz, rel_tol=CLOCK_TOLERANCE)
    ]
