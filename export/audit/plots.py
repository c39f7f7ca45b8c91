"""The report's figures, as SVG text that a page can hold."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .results import AttackResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 6.4, 3.2  # inches; the page scales them


def psnr_distribution(attacks: Sequence[AttackResult], undefended: AttackResult | None) -> str:
    """Histograms of every image's PSNR, one line an attack, the undefended model's best attack dashed."""
    figure, axes = _figure()
    values = [*attacks, *([undefended] if undefended else [])]
    low, high = min(min(a.psnr_each) for a in values), max(max(a.psnr_each) for a in values)
    bins = np.linspace(low, max(high, low + 0.1), 40).tolist()
    for attack in attacks:
        axes.hist(attack.psnr_each, bins=bins, density=True, histtype="step", linewidth=1.6, label=attack.name)
    if undefended:
        axes.hist(
            undefended.psnr_each, bins=bins, density=True, histtype="step", linewidth=1.2, linestyle="--",
            color="#666", label=f"undefended: {undefended.name}",
        )  # fmt: skip
    axes.set_xlabel("PSNR of the rebuilt image, dB (lower is more private)")
    axes.set_ylabel("density")
    axes.legend(frameon=False)
    return _svg(figure)


def fsinfo_against_psnr(points: Mapping[str, tuple[float, float]]) -> str:
    """One point a model: FSInfo in nats a dimension, and the best attack's PSNR in dB."""
    figure, axes = _figure()
    for name, (information, decibel) in points.items():
        axes.scatter([information], [decibel], s=28)
        axes.annotate(name, (information, decibel), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("FSInfo, nats a dimension")
    axes.set_ylabel("PSNR of the best attack, dB")
    axes.margins(0.15)
    return _svg(figure)


def spearman(points: Sequence[tuple[float, float]]) -> float | None:
    """Rank correlation, None for fewer than three points."""
    if len(points) < 3:
        return None
    x, y = (_ranks(column) for column in zip(*points, strict=True))
    return float(np.corrcoef(x, y)[0, 1]) if x.std() and y.std() else None


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks, equal values sharing their mean."""
    array = np.asarray(values)
    return (array[:, None] > array).sum(1) + ((array[:, None] == array).sum(1) - 1) / 2


def _figure() -> tuple[Figure, object]:
    from matplotlib.figure import Figure

    figure = Figure((WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    import matplotlib

    text = io.StringIO()
    # Fixed ids and no date: the same audit gives the same page.
    with matplotlib.rc_context({"svg.hashsalt": "edgesdk", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
