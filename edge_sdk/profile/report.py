"""A profile as one HTML page."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from ..page import write_page
from .caveats import caveats
from .encoder import ProfileReport, named_parts
from .included import latency_holds
from .layer_rows import are_fused, bytes_note, layer_rows
from .plots import latency_histogram, layer_bars, roofline
from .power import rail_label
from .roofline import Roofs, layer_points, measured_roofs, sheet_roofs

__all__ = ["write_html"]

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def write_html(report: ProfileReport, path: Path) -> None:
    """Draw the page.

    Args:
        report: to draw.
        path: the page's.

    Raises:
        MissingExtra: Jinja2 or matplotlib is not installed.
        DataError: the page cannot be written.
    """
    parts = named_parts(report)
    layers = layer_rows(report.encoder, report.batch, report.precision)
    points = layer_points(layers)
    roofs = _roofs(report) if points else None
    try:
        write_page(
            TEMPLATE,
            path,
            report=report,
            parts=parts,
            caveats=caveats(report),
            latency_holds=latency_holds(report),
            histogram=latency_histogram(parts),
            rail_label=rail_label,
            layers=layers,
            fused=are_fused(report.encoder, report.precision),
            bytes_note=bytes_note(report.precision),
            bars=layer_bars(report.encoder) if report.encoder.layer_ms else None,
            roofs=roofs,
            roofline=roofline(points, roofs) if roofs else None,
        )
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


def _roofs(report: ProfileReport) -> Roofs | None:
    """A CPU's are measured, in float32 alone; a Jetson's GPU has a data sheet."""
    if report.accelerator:
        return sheet_roofs(report.accelerator, report.begin, report.precision)
    return measured_roofs(report.num_threads) if report.precision == "fp32" else None
