"""What a Jetson tells of itself: NVIDIA's Linux for Tegra (L4T), its power mode and its GPU's clock.

Sources: the files that L4T leaves, and the output of ``nvpmodel -q``, as jetson_stats and NVIDIA's own tools read them.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

__all__ = ["GpuClock", "JetPack", "gpu_clock", "is_jetson", "jetpack", "l4t_version", "nvpmodel_mode", "power_mode"]

RELEASE_FILE = Path("/etc/nv_tegra_release")
GPU_NAMES = ("gp10b", "gv11b", "ga10b", "gpu")


class JetPack(NamedTuple):
    """A release of NVIDIA's software for Jetson; ``python`` is the one that its TensorRT is for."""

    name: str
    python: str
    tensorrt: str


_JETPACKS = {
    "32": JetPack("4", "3.6", "8.0 to 8.2"),
    "35": JetPack("5", "3.8", "8.4 to 8.5"),
    "36.2": JetPack("6.0", "3.10", "8.6"),
    "36.3": JetPack("6.0", "3.10", "8.6"),
    "36": JetPack("6.1 or 6.2", "3.10", "10.3"),
    "38": JetPack("7.0 or 7.1", "3.12", "10.13"),
    "39": JetPack("7.2", "3.12", "10.16 or 11.4"),
}


class GpuClock(NamedTuple):
    """Of a Jetson's GPU, MHz; ``locked`` where the lowest is the highest, as jetson_clocks sets it."""

    now: int
    lowest: int
    highest: int

    @property
    def locked(self) -> bool:
        return self.lowest == self.highest


def is_jetson() -> bool:
    """Whether this is a Jetson, whose GPU shares the CPU's memory."""
    return RELEASE_FILE.exists()


def l4t_version(release: str) -> str | None:
    """``36.4.3`` from the text of /etc/nv_tegra_release, ``# R36 (release), REVISION: 4.3, …``; None if it is other."""
    found = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", release)
    return f"{found[1]}.{found[2]}" if found else None


def jetpack(l4t: str) -> JetPack | None:
    """The JetPack of an L4T version; None for one that is not known here."""
    return _JETPACKS.get(".".join(l4t.split(".")[:2])) or _JETPACKS.get(l4t.partition(".")[0])


def nvpmodel_mode(text: str) -> str | None:
    """The power mode from what ``nvpmodel -q`` prints, ``NV Power Mode: 15W``; None if it has none."""
    found = re.search(r"NV Power Mode: *(\S+)", text)
    return found[1] if found else None


def power_mode() -> str | None:
    """Of this machine; None where there is no nvpmodel, or it does not answer."""
    try:
        done = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, check=False, timeout=10)  # noqa: S607
    except (OSError, subprocess.TimeoutExpired):
        return None
    return nvpmodel_mode(done.stdout)


def gpu_clock(sysfs: Path = Path("/sys")) -> GpuClock | None:
    """Of this machine's GPU; None where the kernel has no such file.

    Args:
        sysfs: where the kernel's files are.
    """
    for folder in sorted((sysfs / "class" / "devfreq").glob("*")):
        names = folder.name.replace("-", ".").split(".")
        if not any(name in GPU_NAMES for name in names):
            continue
        try:
            hertz = [int((folder / f"{name}_freq").read_text()) for name in ("cur", "min", "max")]
        except (OSError, ValueError):
            continue
        return GpuClock(*(value // 1_000_000 for value in hertz))
    return None
