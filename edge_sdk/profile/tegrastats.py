"""One line of NVIDIA's ``tegrastats``, in every form from L4T 32 to 39.

Tokens are read by their shape, not by their place: the order is not fixed, and new releases add tokens.
"""

from __future__ import annotations

import re

import msgspec

from ..errors import DeviceError

__all__ = ["Tegrastats", "parse_tegrastats"]

OFFLINE_C = -200.0
"""Below: a zone that is switched off, which prints -256."""

_NUMBER = r"-?\d+(?:\.\d+)?"
_MEMORY = re.compile(r"\bRAM (\d+)/(\d+)MB")
_CPU = re.compile(r"\bCPU \[([^\]]*)\]")
_CORE = re.compile(r"(\d+)%@(\d+)")
_EMC = re.compile(r"\bEMC_FREQ (\d+)%(?:@(\d+))?")
_GPU = re.compile(r"\bGR3D_FREQ (?:(\d+)%)?(?:@(?:\[([\d,]+)\]|(\d+)))?(?=\s|$)")
_TEMPERATURE = re.compile(rf"(?<!\S)([A-Za-z][\w-]*)@({_NUMBER})C(?:/{_NUMBER}C)?(?=\s|$)")
# In milliwatts: `NAME now/mean` before L4T 34, with the unit from then on, with a third value from 39 on.
_POWER = re.compile(r"(?<!\S)([A-Z][A-Z0-9_]*) (\d+)(?:mW/\d+mW(?:/\d+mW)?|/\d+)(?=\s|$)")


class Tegrastats(msgspec.Struct, frozen=True):
    """What the line says; None and missing keys where it says nothing.

    Attributes:
        ram_used_mb: of ``ram_total_mb``, shared by CPU and GPU.
        ram_total_mb: that Linux has.
        cpu_percent: of each core that is on.
        gpu_percent: busy; Thor prints none.
        gpu_mhz: clock, one value or one for each graphics cluster.
        memory_percent: of the memory controller's bandwidth.
        memory_mhz: of the memory controller.
        temperature_c: by zone, lower case, those that are on.
        power_mw: by rail, at this moment.
    """

    ram_used_mb: int
    ram_total_mb: int
    cpu_percent: tuple[int, ...]
    gpu_percent: int | None
    gpu_mhz: tuple[int, ...]
    memory_percent: int | None
    memory_mhz: int | None
    temperature_c: dict[str, float]
    power_mw: dict[str, int]


def parse_tegrastats(line: str) -> Tegrastats:
    """Read a line.

    Raises:
        DeviceError: it has no memory figures: not a line of tegrastats, or a torn one.
    """
    memory = _MEMORY.search(line)
    if memory is None:
        raise DeviceError(f"not a line of tegrastats: {line[:60]!r}")
    cpu, emc, gpu = _CPU.search(line), _EMC.search(line), _GPU.search(line)
    clocks = (gpu.group(2) or gpu.group(3) or "") if gpu else ""
    zones = {name.lower(): float(value) for name, value in _TEMPERATURE.findall(line)}
    return Tegrastats(
        ram_used_mb=int(memory.group(1)),
        ram_total_mb=int(memory.group(2)),
        cpu_percent=tuple(int(load) for load, _ in _CORE.findall(cpu.group(1))) if cpu else (),
        gpu_percent=int(gpu.group(1)) if gpu and gpu.group(1) else None,
        gpu_mhz=tuple(int(clock) for clock in clocks.split(",") if clock),
        memory_percent=int(emc.group(1)) if emc else None,
        memory_mhz=int(emc.group(2)) if emc and emc.group(2) else None,
        temperature_c={name: value for name, value in zones.items() if value > OFFLINE_C},
        power_mw={
            name: int(value) for name, value in _POWER.findall(line) if name not in ("NC", "RAM", "SWAP", "IRAM")
        },
    )
