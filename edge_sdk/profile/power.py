"""Power of a Jetson's rails, from its INA3221 monitors in sysfs or else from tegrastats, and the energy of what ran.

Files and units: from JetPack 5 on ``Documentation/hwmon/ina3221.rst`` of the Linux kernel; in JetPack 4 an iio driver.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import msgspec

from ..errors import DeviceError
from ..sysfs import read_number, read_text
from .sampler import Sampler
from .tegrastats import parse_tegrastats

__all__ = [
    "Energy",
    "PowerSampler",
    "PowerSource",
    "Rail",
    "TegrastatsPower",
    "find_rails",
    "power_source",
    "rail_label",
]

TOTALS = ("VDD_IN", "POM_5V_IN", "VIN")
"""Rails that carry a whole module; AGX Xavier and AGX Orin have none, and adding theirs up would count some twice."""

INTERVAL_S = 0.1
TEGRASTATS = ("tegrastats", "--interval", "100")
FIRST_LINE_S = 5.0

PowerSource = Callable[[], dict[str, float]]
"""Gives the power at this moment, mW by rail; raises DeviceError where it cannot be read."""


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
    return sorted([*_hwmon(drivers), *_iio(drivers), *_thor(drivers)], key=lambda rail: rail.name)


def _hwmon(drivers: Path) -> Iterator[Rail]:
    """JetPack 5 and later: mV and mA of channels 1 to 3; further channels are shunts and their sum."""
    # A channel that is switched off has its files all the same, and refuses to be read.
    for folder in sorted(drivers.glob("ina3221/*/hwmon/hwmon*")):
        for n in (1, 2, 3):
            name = read_text(folder / f"in{n}_label")
            volts, amperes = folder / f"in{n}_input", folder / f"curr{n}_input"
            if name and "NC" not in name.split() and None not in (read_number(volts), read_number(amperes)):
                yield Rail(name, (volts, amperes), 1000)


def _iio(drivers: Path) -> Iterator[Rail]:
    """JetPack 4: mW of channels 0 to 2."""
    for folder in sorted(drivers.glob("ina3221x/*/iio:device*")):
        for n in (0, 1, 2):
            name, watts = read_text(folder / f"rail_name_{n}"), folder / f"in_power{n}_input"
            if name and "NC" not in name.split() and read_number(watts) is not None:
                yield Rail(name, (watts,), 1)


def _thor(drivers: Path) -> Iterator[Rail]:
    """Thor's whole module, uW by an INA238 of its own, as NVIDIA's forum tells; never tried on one."""
    for folder in sorted(drivers.glob("ina238/*/hwmon/hwmon*"))[:1]:
        if read_number(folder / "power1_input") is not None:
            yield Rail("VIN", (folder / "power1_input",), 1000)


@contextmanager
def power_source(root: Path = Path("/"), tegrastats: Sequence[str] = TEGRASTATS) -> Iterator[PowerSource | None]:
    """What tells this machine's power, while the body of a ``with`` runs; None where nothing does.

    Args:
        root: of the file system.
        tegrastats: its command, which is run where sysfs has no monitor.

    Raises:
        DeviceError: tegrastats is there, and does not start or prints nothing of use.
    """
    rails = find_rails(root)
    if rails:
        yield lambda: {rail.name: rail.read_mw() for rail in rails}
    elif shutil.which(tegrastats[0]):
        with TegrastatsPower(tegrastats) as source:
            yield source
    else:
        yield None


def rail_label(rail: str, total_rail: str | None) -> str:
    """The rail's name for people, who may add it to others that it holds."""
    return f"{rail} (whole module)" if rail == total_rail else rail


class TegrastatsPower:
    """The rails of tegrastats' latest line, from a process that runs while the body of a ``with`` does.

    Raises:
        DeviceError: on entry, tegrastats does not start or prints nothing of use; when called, it is read no more.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)
        self._latest: dict[str, float] = {}
        self._error: DeviceError | None = None
        self._first = threading.Event()

    def __call__(self) -> dict[str, float]:
        if self._error:
            raise self._error
        return dict(self._latest)

    def __enter__(self) -> TegrastatsPower:
        try:
            self._process = subprocess.Popen(  # noqa: S603  (the device's own tool)
                self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8", errors="replace"
            )
        except OSError as error:  # of another architecture, or not ours to run
            raise DeviceError(f"{self._command[0]} does not start ({error})") from error
        self._thread = threading.Thread(target=self._follow, name="tegrastats", daemon=True)
        self._thread.start()
        if not self._first.wait(FIRST_LINE_S) or not self._latest:
            self.__exit__(None, None, None)
            raise DeviceError(f"{self._command[0]} prints no power rail")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._thread.join()
        self._process.wait()

    def _follow(self) -> None:
        end = "ended by itself"
        try:
            self._keep_latest()
        except Exception as error:
            end = f"is read no more ({error!r})"
        finally:  # whatever ended it: the latest power is the power no more
            self._error = DeviceError(f"{self._command[0]} {end}")
            self._first.set()

    def _keep_latest(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                try:
                    rails = {name: float(value) for name, value in parse_tegrastats(line).power_mw.items()}
                except (DeviceError, ValueError, OverflowError):
                    continue  # a torn line, or a message, or a number that is none
                if set(self._latest) <= set(rails):  # all that the first line had
                    self._latest = rails
                if self._latest:
                    self._first.set()


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


class PowerSampler(Sampler[tuple[float, dict[str, float]]]):
    """Reads rails while the body of a ``with`` runs.

    Args:
        source: of the rails' power.
        interval_s: between readings; the monitors average over some tens of milliseconds.
    """

    def __init__(self, source: PowerSource, *, interval_s: float = INTERVAL_S) -> None:
        self._source = source
        super().__init__(self._read, interval_s)

    def energy(self) -> Energy:
        """Over the body, which has ended.

        Raises:
            DeviceError: a rail could not be read.
        """
        samples = self.samples
        times = [at for at, _ in samples]
        seconds = times[-1] - times[0]
        energy: dict[str, float] = {}
        for rail in samples[0][1]:
            values = [powers[rail] for _, powers in samples]
            steps = zip(values, values[1:], times, times[1:], strict=False)
            energy[rail] = sum((a + b) / 2 * (end - begin) for a, b, begin, end in steps)
        mean = {name: value / seconds if seconds else 0.0 for name, value in energy.items()}
        total = next((name for name in TOTALS if name in energy), None)
        return Energy(seconds, len(samples), mean, energy, total)

    def _read(self) -> tuple[float, dict[str, float]]:
        before = time.monotonic()
        powers = self._source()
        return (before + time.monotonic()) / 2, powers
