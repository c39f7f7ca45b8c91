"""What a run of each part draws, where the machine has a power monitor."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence

import msgspec

from ..errors import DeviceError
from .conditions import ConditionsSampler, Extremes
from .power import Energy, PowerSampler, PowerSource, power_source

__all__ = ["PartEnergy", "measured_energies"]

IDLE_S, ENERGY_S = 2.0, 5.0
"""How long rails are read with nothing running, and with a part running."""

SETTLE_S, RISE_S = 2.0, 0.5
"""How long nothing runs, and a part does, before that: clocks fall and rise, and monitors give means of what was."""


class PartEnergy(msgspec.Struct, frozen=True):
    """What one run of a part draws, by rail.

    Attributes:
        num_runs: one after the other.
        seconds: that they took.
        num_samples: readings of each rail in that time.
        total_rail: that carries the whole module, the other rails' power included; None where there is none.
        mean_mw: while it ran.
        idle_mw: before, with nothing running.
        run_mj: of one run.
        above_idle_mj: of one run, less what the idle machine draws in its time.
        during: the conditions' worst while it ran.
    """

    num_runs: int
    seconds: float
    num_samples: int
    total_rail: str | None
    mean_mw: dict[str, float]
    idle_mw: dict[str, float]
    run_mj: dict[str, float]
    above_idle_mj: dict[str, float]
    during: Extremes


def measured_energies(runs: Sequence[Callable[[], object]]) -> list[PartEnergy | None]:
    """Of each part, by what runs it once; None where the machine has no power monitor.

    Part by part, because rails tell no parts apart; a monitor that fails costs the report its energies alone.
    """
    try:
        with power_source() as source:
            if source is None:
                return [None] * len(runs)
            time.sleep(SETTLE_S)
            with PowerSampler(source) as sampler:
                time.sleep(IDLE_S)
            idle = sampler.energy()
            return [_energy(run, source, idle) for run in runs]
    except DeviceError as error:
        warnings.warn(f"no energy: {error}", stacklevel=2)
        return [None] * len(runs)


def _energy(run: Callable[[], object], source: PowerSource, idle: Energy) -> PartEnergy:
    num_runs, warm = 0, time.monotonic() + RISE_S
    while time.monotonic() < warm:
        run()
    with ConditionsSampler() as watched, PowerSampler(source) as sampler:
        begin = time.monotonic()
        while time.monotonic() - begin < ENERGY_S:
            run()
            num_runs += 1
    found = sampler.energy()
    return PartEnergy(
        num_runs=num_runs,
        seconds=found.seconds,
        num_samples=found.num_samples,
        total_rail=found.total_rail,
        mean_mw=found.mean_mw,
        idle_mw=idle.mean_mw,
        run_mj=found.per_run_mj(num_runs),
        above_idle_mj=found.per_run_mj(num_runs, idle),
        during=watched.extremes(),
    )
