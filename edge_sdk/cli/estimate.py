"""The estimates of ``edgesdk profile --device``: tables of what a Jetson that is not at hand would take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from ..bundle import Cost, Precision
    from ..profile.devices import Device, PowerMode
    from ..profile.predict import Estimate


class EstimateReport(msgspec.Struct, frozen=True):
    """Latencies that nobody measured: of a bundle's device side, and of the undefended encoder."""

    bundle_id: str
    defense: str
    measured: bool
    median_error: float
    median_error_without_prior: float
    worst_board_error: float
    interval: float
    interval_without_prior: float
    covered_unseen: float
    worst_board_covered: float
    defended: list[Estimate]
    undefended: list[Estimate]


def list_devices() -> None:
    """The modules and their power modes."""
    from ..profile.devices import DEVICES
    from .tables import print_table

    rows = [
        [device.name if mode is device.modes[0] else "", device.title if mode is device.modes[0] else "", mode.name,
         str(mode.num_sms), str(mode.gpu_mhz), f"{mode.memory_gbps:.1f}", "" if mode.sourced else "in part a guess"]
        for device in DEVICES.values() for mode in device.modes
    ]  # fmt: skip
    print_table("", ["device", "", "power mode", "SMs", "GPU MHz", "memory GB/s", "sources"], rows)


def estimate(edge: Path, device: str, power_mode: str | None, precision: Precision | None) -> EstimateReport:
    """Estimate a bundle's device side.

    Args:
        edge: ``BUNDLE/edge``.
        device: a module, or ``all``.
        power_mode: None takes the highest, for ``all`` always.
        precision: None takes every one.

    Raises:
        BundleError: the folder is not a whole, unaltered edge party.
        ConfigError: no such device or power mode, or one that does not compute in the precision.
    """
    from ..bundle import EDGE, open_party
    from ..errors import ConfigError
    from ..profile.devices import DEVICES, find_device
    from ..profile.predict import (
        COVERED_UNSEEN,
        INTERVAL,
        INTERVAL_WITHOUT_PRIOR,
        MEDIAN_ERROR,
        MEDIAN_ERROR_WITHOUT_PRIOR,
        WORST_BOARD_COVERED,
        WORST_BOARD_ERROR,
    )

    manifest = open_party(edge, EDGE).manifest
    chosen = list(DEVICES.values()) if device == "all" else [find_device(device)]
    places = [(each, each.mode(None if device == "all" else power_mode)) for each in chosen]
    own = [part.cost for part in manifest.parts if part.placement == EDGE and part.cost]
    reference = [manifest.reference.cost] if manifest.reference and manifest.reference.cost else []
    defended = _estimates(own, places, precision)
    if not defended:
        raise ConfigError(f"{device} does not compute in {precision}")
    return EstimateReport(
        bundle_id=manifest.bundle_id,
        defense=manifest.defense,
        measured=False,
        median_error=MEDIAN_ERROR,
        median_error_without_prior=MEDIAN_ERROR_WITHOUT_PRIOR,
        worst_board_error=WORST_BOARD_ERROR,
        interval=INTERVAL,
        interval_without_prior=INTERVAL_WITHOUT_PRIOR,
        covered_unseen=COVERED_UNSEEN,
        worst_board_covered=WORST_BOARD_COVERED,
        defended=defended,
        undefended=_estimates(reference, places, precision) if reference else [],
    )


def _estimates(
    costs: list[Cost], places: list[tuple[Device, PowerMode]], precision: Precision | None
) -> list[Estimate]:
    from ..profile.predict import estimate_latency

    precisions: tuple[Precision, ...] = (precision,) if precision else ("fp32", "fp16", "int8")
    found = [estimate_latency(costs, device, mode, each) for device, mode in places for each in precisions]
    return [each for each in found if each is not None]


def print_estimate(report: EstimateReport) -> None:
    """The report as a table."""
    from .tables import print_table

    undefended = {(each.device, each.precision): each for each in report.undefended}
    rows = []
    for each in report.defended:
        other = undefended.get((each.device, each.precision))
        rows.append(
            [f"{each.device} {each.power_mode}{'' if each.sourced else ' *'}", each.precision, f"{each.latency_ms:.2f}",
             f"{each.low_ms:.2f} to {each.high_ms:.2f}", str(each.num_kernels),
             f"{other.latency_ms:.2f}" if other else "", f"{other.latency_ms / each.latency_ms:.2f}" if other else ""]
        )  # fmt: skip
    print_table(
        f"{report.defense}: ESTIMATED, not measured. TensorRT engine, batch 1; some of the latencies behind it hold "
        "copies.\n"
        f"On four boards, each left out of the fit: median error {report.median_error:.0%}, on the worst board "
        f"{report.worst_board_error:.0%}; four of five within a factor of {report.interval:g}, which was set by these "
        f"same errors: set by the other boards' alone it held {report.covered_unseen:.0%}, and of the worst board "
        f"{report.worst_board_covered:.0%}.\n"
        "The fit is held near a guess of its constants, which was chosen by these errors too; without it the median "
        f"error is {report.median_error_without_prior:.0%}, and the factor {report.interval_without_prior:.1f}.\n"
        "Never checked in lower power modes, on Thor, or under 1 ms.\n* some of the mode's clocks or its bandwidth "
        "are in no document; nor are Xavier's rates in fp16 and int8, and Thor's in int8",
        ["device and mode", "precision", "ms", "interval, ms", "kernels", "undefended, ms", "undefended / defended"],
        rows,
    )
