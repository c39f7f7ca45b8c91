"""What a measurement was made under: power mode, clocks, temperatures, and whether the machine held itself back."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from ..jetson import gpu_clock, is_jetson, power_mode
from ..sysfs import read_number, read_text
from .sampler import Sampler

__all__ = ["Conditions", "ConditionsSampler", "Extremes", "held_back", "over_current"]

INTERVAL_S = 0.2
SLOWS = re.compile("cpu|gpu|processor|throttle", re.IGNORECASE)
"""In the names of cooling devices: ``cpufreq-cpu0``, ``17000000.gpu``, ``Processor``, ``gpu-throttle-alert``."""
LEAST = 0.98
"""Of the lowest clock allowed: a PC measures its clock, and may find one just below."""


class Conditions(msgspec.Struct, frozen=True):
    """At one moment; None or empty where the machine does not tell.

    Attributes:
        power_mode: a Jetson's, by name.
        gpu_mhz: a Jetson's GPU clock: now, lowest and highest allowed.
        cpu_mhz: the first CPU's clock: now, lowest and highest allowed.
        temperatures_c: by thermal zone.
        alarms: rails whose current is over its limit, so that the module lowers its clocks.
        memory_cap_mhz: what a Jetson's power mode allows the memory's clock; from JetPack 6 on its highest where there
            is no cap, before None.
        over_current: how often each of a module's over-current limits was met since it started, by name; every time it
            lowers its clocks for a moment.
    """

    power_mode: str | None
    gpu_mhz: tuple[int, int, int] | None
    cpu_mhz: tuple[int, int, int] | None
    temperatures_c: dict[str, float]
    alarms: list[str]
    memory_cap_mhz: int | None = None
    over_current: dict[str, int] = {}

    @classmethod
    def now(cls, root: Path = Path("/")) -> Conditions:
        """Of this machine.

        Args:
            root: of the file system.
        """
        sysfs = root / "sys"
        clock = gpu_clock(sysfs)
        return cls(
            power_mode=power_mode() if is_jetson() else None,
            gpu_mhz=None if clock is None else (clock.now, clock.lowest, clock.highest),
            cpu_mhz=_cpu_mhz(sysfs),
            temperatures_c=_temperatures(sysfs),
            alarms=_alarms(sysfs),
            memory_cap_mhz=_memory_cap_mhz(sysfs),
            over_current=_over_current(sysfs),
        )


class Extremes(msgspec.Struct, frozen=True):
    """Of everything that was seen while something ran; None or empty where the machine does not tell.

    Attributes:
        num_samples: that were taken.
        lowest_gpu_mhz: of a Jetson's GPU.
        lowest_cpu_mhz: of the first CPU.
        highest_c: by thermal zone.
        alarms: rails whose current was over its limit at any time.
        cooling: what the kernel slowed down for heat at any time, by the names of its cooling devices.
    """

    num_samples: int
    lowest_gpu_mhz: int | None
    lowest_cpu_mhz: int | None
    highest_c: dict[str, float]
    alarms: list[str]
    cooling: list[str] = []


def over_current(begin: Conditions, end: Conditions) -> list[str]:
    """The limits of current that were met between two moments, a line for each."""
    return [
        f"the over-current limit {name} was met {count - begin.over_current.get(name, 0)} times during the runs, "
        "and lowered the clocks"
        for name, count in end.over_current.items()
        if count > begin.over_current.get(name, 0)
    ]


def held_back(begin: Conditions, during: Extremes) -> list[str]:
    """Whether the machine slowed itself down, a line for each sign of it.

    A clock below the lowest allowed when the runs began tells where that is locked; a cooling device at work tells
    where the clock may vary.
    """
    lines = [f"heat held the machine back during the runs: {name} was slowed down" for name in during.cooling]
    for name, allowed, lowest in (
        ("GPU", begin.gpu_mhz, during.lowest_gpu_mhz),
        ("CPU", begin.cpu_mhz, during.lowest_cpu_mhz),
    ):
        if allowed is not None and lowest is not None and lowest < LEAST * allowed[1]:
            lines.append(
                f"the {name}'s clock fell to {lowest} MHz during the runs, below the {allowed[1]} MHz that were the "
                "lowest allowed: heat or current held it back"
            )
    return lines


Seen = tuple[int | None, int | None, dict[str, float], list[str], list[str]]
"""MHz of GPU and CPU, temperatures and alarms, as ``Conditions`` has them, and cooling devices at work."""


class ConditionsSampler(Sampler[Seen]):
    """Looks at clocks, temperatures and alarms five times a second while the body of a ``with`` runs.

    Args:
        root: of the file system.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._sysfs = root / "sys"
        super().__init__(self._look, INTERVAL_S)

    def extremes(self) -> Extremes:
        """Over the body, which has ended."""
        gpus, cpus, zones, alarms, cooling = zip(*self.samples, strict=True)
        names = dict.fromkeys(name for each in zones for name in each)
        return Extremes(
            num_samples=len(gpus),
            lowest_gpu_mhz=min((each for each in gpus if each is not None), default=None),
            lowest_cpu_mhz=min((each for each in cpus if each is not None), default=None),
            highest_c={name: max(each[name] for each in zones if name in each) for name in names},
            alarms=sorted({name for each in alarms for name in each}),
            cooling=sorted({name for each in cooling for name in each}),
        )

    def _look(self) -> Seen:
        gpu, cpu = gpu_clock(self._sysfs), _cpu_mhz(self._sysfs)
        now = (gpu.now if gpu else None, cpu[0] if cpu else None)
        return (*now, _temperatures(self._sysfs), _alarms(self._sysfs), _cooling(self._sysfs))


def _cpu_mhz(sysfs: Path) -> tuple[int, int, int] | None:
    folder = sysfs / "devices" / "system" / "cpu" / "cpu0" / "cpufreq"
    found = [read_number(folder / f"scaling_{name}_freq") for name in ("cur", "min", "max")]
    now, lowest, highest = (None if each is None else each // 1000 for each in found)  # files are in kHz
    return None if now is None or lowest is None or highest is None else (now, lowest, highest)


def _memory_cap_mhz(sysfs: Path) -> int | None:
    """What nvpmodel wrote, in Hz; before JetPack 6, 0 and its -1 (as the driver stores it) are no limit."""
    hertz = read_number(sysfs / "kernel" / "nvpmodel_clk_cap" / "emc")
    if hertz is None:
        hertz = read_number(sysfs / "kernel" / "nvpmodel_emc_cap" / "emc_iso_cap")
    return hertz // 1_000_000 if hertz and hertz > 0 and hertz != 2**31 - 1 else None


def _over_current(sysfs: Path) -> dict[str, int]:
    """The soctherm driver's counters, which miss none as looking five times a second does."""
    files = sorted((sysfs / "class" / "hwmon").glob("hwmon*/oc*_event_cnt"))
    counted = {path.name.removesuffix("_event_cnt"): read_number(path) for path in files}
    return {name: count for name, count in counted.items() if count is not None}


def _temperatures(sysfs: Path) -> dict[str, float]:
    """A zone that is switched off cannot be read, or reads some -256 C; a PMIC's constant 100 C says nothing."""
    temperatures = {}
    for zone in sorted((sysfs / "devices" / "virtual" / "thermal").glob("thermal_zone*")):
        name, millidegrees = read_text(zone / "type"), read_number(zone / "temp")
        if name and millidegrees is not None and millidegrees > -100_000 and not name.startswith("PMIC"):
            temperatures[name] = millidegrees / 1000
    return temperatures


def _cooling(sysfs: Path) -> list[str]:
    """Cooling devices at work that slow a processor down; fans and backlights are none."""
    folders = sorted((sysfs / "class" / "thermal").glob("cooling_device*"))
    at_work = [read_text(folder / "type") for folder in folders if (read_number(folder / "cur_state") or 0) > 0]
    return [name for name in at_work if SLOWS.search(name)]


def _alarms(sysfs: Path) -> list[str]:
    return [
        read_text(folder / f"in{n}_label") or f"{folder.name} channel {n}"
        for folder in sorted((sysfs / "bus" / "i2c" / "drivers").glob("ina3221/*/hwmon/hwmon*"))
        for n in (1, 2, 3)
        if any(read_number(folder / f"curr{n}_{kind}_alarm") for kind in ("max", "crit"))
    ]
