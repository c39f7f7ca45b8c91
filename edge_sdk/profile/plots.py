"""A profile's figures, as SVG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..page import new_figure, svg
from .encoder import PartProfile
from .roofline import LayerPoint, Roofs

__all__ = ["latency_histogram", "layer_bars", "roofline"]

MOST_LAYERS = 20
MOST_NAMES = 8
LONGEST_NAME = 40


def latency_histogram(parts: Sequence[tuple[str, PartProfile]]) -> str:
    """Every run's latency, one line a part; the slowest hundredth is left out."""
    figure, axes = new_figure()
    top = max(part.latency.p99_ms for _, part in parts)
    bottom = min(part.latency.min_ms for _, part in parts)
    bins = np.linspace(bottom, max(top, bottom * 1.01), 60).tolist()
    for name, part in parts:
        axes.hist(part.samples_ms, bins=bins, histtype="step", linewidth=1.6, label=name)
    axes.set_xlabel("latency of a run, ms")
    axes.set_ylabel("runs")
    axes.legend(frameon=False)
    return svg(figure)


def layer_bars(part: PartProfile) -> str:
    """The slowest layers' times, in the order of the graph."""
    slowest = sorted(part.layer_ms, key=lambda name: part.layer_ms[name])[-MOST_LAYERS:]
    names = [name for name in part.layer_ms if name in slowest][::-1]
    figure, axes = new_figure(0.6 + 0.22 * len(names))
    axes.barh(range(len(names)), [part.layer_ms[name] for name in names], color="#1f6feb")
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_xlabel("median, ms")
    axes.tick_params(axis="y", labelsize=7)
    return svg(figure)


def _short(name: str) -> str:
    """An engine's layer is named after all that is fused in it."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def roofline(points: Sequence[LayerPoint], roofs: Roofs) -> str:
    """Layers under the machine's roofs, both axes logarithmic; those with the most FLOPs are named."""
    figure, axes = new_figure(3.8)
    ridge = roofs.flops / roofs.bytes_per_second
    low = min(*(point.intensity for point in points), ridge) / 3
    high = max(*(point.intensity for point in points), ridge) * 3
    x = np.geomspace(low, high, 100)
    axes.loglog(x, np.minimum(roofs.flops, roofs.bytes_per_second * x) / 1e9, color="#666", linewidth=1.2)
    axes.scatter([point.intensity for point in points], [point.flops_per_second / 1e9 for point in points], s=22)
    for point in sorted(points, key=lambda point: point.flops)[-MOST_NAMES:]:
        axes.annotate(
            point.name, (point.intensity, point.flops_per_second / 1e9), xytext=(4, 3), textcoords="offset points",
            fontsize=6,
        )  # fmt: skip
    axes.set_xlabel("FLOPs for a byte moved")
    axes.set_ylabel("GFLOP/s")
    return svg(figure)
