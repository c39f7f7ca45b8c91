"""What makes a profile's figures doubtful, in words."""

from __future__ import annotations

from .conditions import held_back, over_current
from .encoder import ProfileReport, named_parts
from .stats import UNSTEADY

__all__ = ["caveats"]


def caveats(report: ProfileReport) -> list[str]:
    """A sentence for each, with what to do, without a full stop; none where nothing is doubtful."""
    parts = named_parts(report)
    unsteady = [name for name, part in parts if part.latency.variation > UNSTEADY]
    lines = []
    if unsteady:
        lines.append(
            f"the timings of {', '.join(unsteady)} vary by more than {UNSTEADY:.1%} (std / mean); lock the clocks, or "
            "end what else runs"
        )
    lowered = [*over_current(report.begin, report.end), *held_back(report.begin, report.during)]
    if report.during.alarms:
        lowered.append(f"over current on {', '.join(report.during.alarms)} during the runs lowers the clocks")
    lines += [f"{line}; cool it, choose a lower power mode or a stronger supply" for line in lowered]
    for name, part in parts:
        for line in held_back(report.begin, part.energy.during) if part.energy else []:
            lines.append(f"while the energy of {name} was measured, {line}")
        if part.energy and part.energy.during.alarms:
            rails = ", ".join(part.energy.during.alarms)
            lines.append(f"while the energy of {name} was measured, over current on {rails} lowered the clocks")
    return lines
