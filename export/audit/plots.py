"""The report's figures, as SVG text that a page can hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from edge_sdk.page import HEIGHT, new_figure, svg

from .results import AttackResult, AuditReport, reached

MARKERS = "os^DvP"
"""One for each ten colours."""
LEGEND_COLUMNS, LEGEND_ROW = 2, 0.2
"""Inches a row."""


def psnr_distribution(attacks: Sequence[AttackResult], undefended: AttackResult | None) -> str:
    """Histograms of every image's PSNR, one line an attack, the undefended model's best attack dashed."""
    figure, axes = new_figure()
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
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)  # above what it would hide
    return svg(figure)


class Point(NamedTuple):
    """An adversary of a model.

    Attributes:
        name: of both.
        fsinfo: nats a dimension.
        psnr_db: of the best attack.
        assumed: whether the device adds no noise, so that FSInfo is under an assumed one.
        met: images that the PSNR is of, the same for all points.
    """

    name: str
    fsinfo: float
    psnr_db: float
    assumed: bool
    met: int


def points_of(reports: Iterable[AuditReport]) -> list[Point]:
    """Of those adversaries that FSInfo is known of and that made an attack."""
    known = [
        (report, view, information)
        for report in reports
        for view in report.views
        if (information := view.metric("FSInfo")) and view.attacks
    ]
    values, met = reached([view for _, view, _ in known])
    points = []
    for (report, view, information), value in zip(known, values, strict=True):
        name = f"{report.title} {report.accuracy['test']:.1%}"
        if len(report.views) > 1:
            name += f" {view.name}"
        assumed = information.assumed_noise is not None
        points.append(Point(name, information.value, value, assumed, met))
    return points


def fsinfo_against_psnr(points: Sequence[Point]) -> str:
    """One mark an adversary, hollow where FSInfo is under an assumed noise; a legend below, as names would overlap."""
    rows = -(-len(points) // LEGEND_COLUMNS)
    figure, axes = new_figure(HEIGHT + LEGEND_ROW * rows)
    for k, point in enumerate(points):
        colour = f"C{k % 10}"
        face = "none" if point.assumed else colour
        marker = MARKERS[k // 10 % len(MARKERS)]
        axes.scatter(
            point.fsinfo, point.psnr_db, s=36, marker=marker, facecolors=face, edgecolors=colour, label=point.name
        )
    axes.set_xlabel("FSInfo, nats a dimension")
    axes.set_ylabel("best attack, PSNR in dB")
    axes.margins(0.1)
    figure.legend(frameon=False, loc="outside lower left", ncols=LEGEND_COLUMNS, fontsize=9)
    return svg(figure)


class Ranks(NamedTuple):
    """Spearman's correlation of FSInfo and the best attack's PSNR, None where too few points have one.

    FSInfo depends on the noise: under what a device adds and under an assumed one it is on two scales.

    Attributes:
        of_all: points, both kinds together.
        added: over those whose device adds noise.
        assumed: over those whose FSInfo is under an assumed one.
    """

    of_all: float | None
    added: float | None
    assumed: float | None


def ranks(points: Sequence[Point]) -> Ranks:
    """Over all points, and over either kind."""
    kinds = (points, [p for p in points if not p.assumed], [p for p in points if p.assumed])
    return Ranks(*(spearman([(point.fsinfo, point.psnr_db) for point in each]) for each in kinds))


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
