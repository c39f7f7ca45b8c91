"""Power of a Jetson's rails, from its INA3221 monitors in sysfs, and the energy of what ran meanwhile.

Files and units: from JetPack 5 on ``Documentation/hwmon/ina3221.rst`` of the Linux kernel; in JetPack 4 an iio driver.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import msgspec

from ..errors import DeviceError

__all__ = ["Energy", "PowerSampler", "Rail", "find_rails"]

TOTALS = ("VDD_IN", "POM_5V_IN", "VIN")
"""Rails that carry a whole module; AGX Xavier and AGX Orin have none, and adding theirs up would count some twice."""

INTERVAL_S = 0.1


class Rail(NamedTuple):
    """One channel of a monitor. ``factors`` are files whose product over ``divisor`` is milliwatts."""

    name: str
    factors: tuple[Path, ...]
    divisor: int

    def read_mw(self) -> float:
        """Power at this moment in mW.

        Raises:
            DeviceError: the channel cannot be read.
        """
        try:
            return math.prod(int(path.read_text()) for path in self.factors) / self.divisor
        except (OSError, ValueError) as error:
            raise DeviceError(f"rail {self.name}: {self.factors[0]} cannot be read ({error})") from error


def find_rails(root: Path = Path("/")) -> list[Rail]:
    """Every connected channel of every monitor, by name; none on a machine without.

    Args:
        root: of the file system.
    """
    drivers = root / "sys" / "bus" / "i2c" / "drivers"
    return sorted([*_hwmon(drivers), *_iio(drivers)], key=lambda rail: rail.name)


def _hwmon(drivers: Path) -> Iterator[Rail]:
    """JetPack 5 and later: mV and mA of channels 1 to 3; further channels are shunts and their sum."""
    for folder in sorted(drivers.glob("ina3221/*/hwmon/hwmon*")):
        for n in (1, 2, 3):
            name = _text(folder / f"in{n}_label")
            volts, amperes = folder / f"in{n}_input", folder / f"curr{n}_input"
            if name and "NC" not in name.split() and volts.exists() and amperes.exists():
                yield Rail(name, (volts, amperes), 1000)


def _iio(drivers: Path) -> Iterator[Rail]:
    """JetPack 4: mW of channels 0 to 2."""
    for folder in sorted(drivers.glob("ina3221x/*/iio:device*")):
        for n in (0, 1, 2):
            name, watts = _text(folder / f"rail_name_{n}"), folder / f"in_power{n}_input"
            if name and "NC" not in name.split() and watts.exists():
                yield Rail(name, (watts,), 1)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


class Energy(msgspec.Struct, frozen=True):
    """What rails drew over a time.

    Attributes:
        seconds: of it.
        num_samples: of each rail.
        mean_mw: by rail.
        energy_mj: by rail, the integral over time.
        total_rail: the rail that carries the whole module; None where there is none.
    """

    seconds: float
    num_samples: int
    mean_mw: dict[str, float]
    energy_mj: dict[str, float]
    total_rail: str | None

    def per_run_mj(self, num_runs: int, idle: Energy | None = None) -> dict[str, float]:
        """Energy of one of ``num_runs`` by rail; above what the rails draw while ``idle``, where that is given."""
        return {
            rail: (energy - (idle.mean_mw.get(rail, 0.0) * self.seconds if idle else 0.0)) / num_runs
            for rail, energy in self.energy_mj.items()
        }


class PowerSampler:
    """Reads rails in a thread of its own while the body of a ``with`` runs.

    Args:
        rails: to read, at least one.
        interval_s: between readings; the monitors average over some tens of milliseconds.

    Raises:
        DeviceError: there is no rail to read.
    """

    def __init__(self, rails: Sequence[Rail], *, interval_s: float = INTERVAL_S) -> None:
        if not rails:
            raise DeviceError("no power monitor (INA3221) here; energy is measured on Jetson modules alone")
        self._rails, self._interval_s = tuple(rails), interval_s
        self._samples: list[tuple[float, tuple[float, ...]]] = []
        self._error: DeviceError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="power", daemon=True)

    def __enter__(self) -> PowerSampler:
        self._read()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if error is None:
            self._read()

    def energy(self) -> Energy:
        """Over the body, which has ended.

        Raises:
            DeviceError: a rail could not be read.
        """
        if self._error:
            raise self._error
        times = [at for at, _ in self._samples]
        seconds = times[-1] - times[0]
        energy: dict[str, float] = {}
        for i, rail in enumerate(self._rails):
            values = [powers[i] for _, powers in self._samples]
            steps = zip(values, values[1:], times, times[1:], strict=False)
            energy[rail.name] = sum((a + b) / 2 * (end - begin) for a, b, begin, end in steps)
        mean = {name: value / seconds if seconds else 0.0 for name, value in energy.items()}
        total = next((name for name in TOTALS if name in energy), None)
        return Energy(seconds, len(self._samples), mean, energy, total)

    def _sample(self) -> None:
        try:
            while not self._stop.wait(self._interval_s):
                self._read()
        except DeviceError as error:
            self._error = error

    def _read(self) -> None:
        before = time.monotonic()
        powers = tuple(rail.read_mw() for rail in self._rails)
        self._samples.append(((before + time.monotonic()) / 2, powers))
