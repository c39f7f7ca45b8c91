"""The audit as one HTML page that needs nothing else: pictures, figures and tables inside."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edge_sdk.page import write_page

from ..data import Splits
from ..defenses import BASELINE, completed_settings, defense_class
from ..shipped import keyed_modules
from .coverage import left_out
from .images import sample_rows
from .plots import fsinfo_against_psnr, points_of, psnr_distribution, ranks
from .results import AuditReport, ViewResult, differences
from .run import rebuilt_images
from .target import Target

TEMPLATE = Path(__file__).with_name("report.html.jinja")
REPORT_FILE = "audit.html"
SCALE = 3  # of the pictures

ASSUMED = (
    "The attacker is the server: it has the features, the encoder with all its weights, the defense's settings and its "
    "noise level, and images of the same kind that no training saw.",
    "It attacks every image by itself, and does not ask the device questions.",
    "FSInfo is of a Gaussian prior and Gaussian noise. Where the device adds none it would be infinite: then noise of "
    "a hundredth of each channel's typical deviation is assumed, to compare models by, and no bound is stated.",
    "The PSNR ceiling is what a Gaussian prior and the features' slope at each image allow, as decibels of the mean "
    "squared error: an estimate, not a bound. Images are not Gaussian, van Trees' bound takes the mean of the slopes "
    "before it inverts, and the attacks' PSNR is a mean over images: they can lie above it.",
)
KEYED = (
    "The features are dealt out by a user's key where they ship; here they were dealt as by an empty one, which is "
    "another dealing of the same kind."
)
NOT_TRIED = (
    "Attackers with more images, longer training or larger networks than the budget states.",
    "Generative priors from outside the data set, such as a diffusion model trained on millions of images.",
    "Questions other than the image: who or what is on it can leak where no picture can be rebuilt.",
    "Several requests that show the same scene.",
)


def write_html(report: AuditReport, target: Target, splits: Splits, out: Path, others: Sequence[AuditReport]) -> Path:
    """Draw the page of an audit whose work is in ``out``.

    Args:
        report: of the audit.
        target: that was audited.
        splits: of its data.
        out: the audit's folder.
        others: audits to compare with; the undefended model's is set beside every figure.

    Returns:
        The page's path.

    Raises:
        MissingExtra: Jinja2 or matplotlib is not installed.
        DataError: the pictures are not there.
    """
    undefended = next((each for each in others if _is_alike(each, report) and _of(each) != _of(report)), None)
    unlike = [(each.title, differences(each, report)) for each in others]
    keyed = keyed_modules(target.checkpoint.build())
    path = out / REPORT_FILE
    write_page(
        TEMPLATE,
        path,
        report=report,
        paper=defense_class(report.defense).paper,
        undefended=undefended,
        views=[_view(view, target, splits, out, undefended, report.seed) for view in report.views],
        decibels=lambda error: -10 * math.log10(error),
        against=_against([*(each for each in others if not differences(each, report)), report]),
        unlike=[f"{title} ({', '.join(found)} differ)" for title, found in unlike if found],
        assumed=(*ASSUMED, KEYED) if keyed else ASSUMED,
        not_tried=(*(f"On {who}: {', '.join(missing)}." for who, missing in left_out(report)), *NOT_TRIED),
    )
    return path


def _is_alike(other: AuditReport, report: AuditReport) -> bool:
    """Whether the other is the same backbone's undefended model, cut where it is by default, and met the same means."""
    mine, theirs = ((each.wire_dtype, each.precision, each.config["backbone"]) for each in (report, other))
    default = other.defense == BASELINE and other.config.get("split") is None
    return default and mine == theirs and not differences(other, report)


def _view(
    view: ViewResult,
    target: Target,
    splits: Splits,
    out: Path,
    undefended: AuditReport | None,
    seed: int,
) -> dict[str, Any]:
    """What the page shows of one adversary."""
    whole = undefended.views[-1] if undefended else None
    rows = []
    for metric in view.metrics:
        other = whole.metric(metric.name) if whole else None
        # FSInfo is a logarithm: its zero is a choice of units, and no ratio says anything.
        comparable = other is not None and other.value and metric.name != "FSInfo"
        rows.append((metric, other, metric.value / other.value if comparable else None))
    shown: dict[str, Any] = {"result": view, "metrics": rows, "whole": whole, "figure": None, "pictures": []}
    if view.attacks:
        best = whole.best_attack if whole and whole.attacks else None
        shown["figure"] = psnr_distribution(view.attacks, best)
        shown["pictures"] = _pictures(view, target, splits, out, seed)
    return shown


def _pictures(view: ViewResult, target: Target, splits: Splits, out: Path, seed: int) -> list[dict[str, Any]]:
    """Of the images that every attack met, those that the best attack rebuilt best, middling and worst."""
    torch.manual_seed(seed)  # of the noise that the features are shown with
    met = view.num_met
    rows = sample_rows(len(splits.test), met)
    order = np.argsort(view.best_attack.psnr_each[:met])[::-1]
    rebuilt = {attack.name: rebuilt_images(out, view.name, attack.name) for attack in view.attacks}
    servers = target.view(view.servers)
    columns = []
    for name, place in (("best", 0), ("median", met // 2), ("worst", met - 1)):
        index = int(order[place])
        image = torch.from_numpy(splits.test.pixels[rows[index]]).permute(2, 0, 1)
        columns.append(
            {
                "name": name,
                "original": _png(image),
                "features": _png(_tiled(servers.observe(image[None].float() / 255))),
                "rebuilt": [(a.name, _png(rebuilt[a.name][index]), a.psnr_each[index]) for a in view.attacks],
            }
        )
    return columns


def _against(reports: Sequence[AuditReport]) -> dict[str, Any] | None:
    """FSInfo against the best attack's PSNR, over all adversaries of all audits that have both."""
    points = points_of({_of(each): each for each in reports}.values())  # the last audit of a model
    if len(points) < 2:
        return None
    return {
        "figure": fsinfo_against_psnr(points),
        "ranks": ranks(points),
        "count": len(points),
        "met": points[0].met,
        "assumed": sum(point.assumed for point in points),
    }


def _of(report: AuditReport) -> tuple[str, ...]:
    """What was audited: two with the same are of one thing."""
    settings = completed_settings(report.defense, report.config)
    return report.weights_sha256, json.dumps(settings, sort_keys=True), report.wire_dtype, report.precision


def _tiled(features: tuple[Tensor, ...]) -> Tensor:
    """Features as one grey picture ``(3, H, W)``: maps side by side, vectors in rows; brightest is largest."""
    strips = []
    for share in features:
        z = share[0].cpu().float()
        low, high = z.min(), z.max()
        z = (z - low) / (high - low).clamp_min(1e-12)
        if z.dim() == 3:
            side = int(np.ceil(np.sqrt(len(z))))
            missing = side * side - len(z)
            z = torch.cat([z, z.new_zeros(missing, *z.shape[1:])])
            strips.append(z.view(side, side, *z.shape[1:]).permute(0, 2, 1, 3).reshape(side * z.shape[1], -1))
        else:
            flat = z.flatten()
            side = int(np.ceil(np.sqrt(len(flat))))
            strips.append(torch.cat([flat, flat.new_zeros(side * side - len(flat))]).view(side, side))
    height = max(len(strip) for strip in strips)
    padded = [torch.cat([s, s.new_zeros(height - len(s), s.shape[1])]) for s in strips]
    return (torch.cat(padded, 1) * 255).round().to(torch.uint8).expand(3, -1, -1)


def _png(pixels: Tensor) -> str:
    """A uint8 ``(3, H, W)`` picture as a data URI."""
    content = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
