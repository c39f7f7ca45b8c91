"""A profile as one HTML page."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from ..page import write_page
from .devices import ELEMENT_BYTES
from .encoder import PartProfile, ProfileReport, named_parts
from .plots import latency_histogram, layer_bars, roofline
from .roofline import layer_points, measured_roofs
from .stats import UNSTEADY

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
    # The roof is the CPU's, in float32.
    on_cpu = report.backend == "onnxruntime" and report.precision == "fp32"
    points = layer_points(report.encoder.cost.layers, report.encoder.layer_ms, report.batch) if on_cpu else []
    roofs = measured_roofs() if points else None
    try:
        write_page(
            TEMPLATE,
            path,
            report=report,
            parts=parts,
            unsteady=[name for name, part in parts if part.latency.variation > UNSTEADY],
            histogram=latency_histogram(parts),
            layers=_layers(report.encoder, report.batch, ELEMENT_BYTES[report.precision]),
            bars=layer_bars(report.encoder) if report.encoder.layer_ms else None,
            roofs=roofs,
            roofline=roofline(points, roofs) if roofs else None,
        )
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


def _layers(part: PartProfile, batch: int, element_bytes: int) -> list[dict[str, object]]:
    """Every layer that does something or takes time: cost beside time."""
    whole = sum(part.layer_ms.values())
    rows = []
    for layer in part.cost.layers:
        took = part.layer_ms.get(layer.name)
        if layer.flops or layer.other_ops or took:
            rows.append(
                {
                    "name": layer.name,
                    "op": layer.op,
                    "output": "x".join(str(size) for size in layer.output_shape[1:]),
                    "mflop": layer.flops * batch / 1e6,
                    "bytes": element_bytes * layer.elements(batch),
                    "ms": took,
                    "share": took / whole if took is not None and whole else None,
                }
            )
    return rows
