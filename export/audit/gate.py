"""An export held to its audit."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.bundle import Precision
from edge_sdk.errors import LeakageError

from ..checkpoint import Checkpoint
from ..defenses import completed_settings
from .coverage import left_out, threat_model
from .results import AttackResult, AuditReport, load_report

LEAST_IMAGES = 16
"""That each attack of an audit must have met, where an export is held to it."""
ONE_SIDED_95 = 1.645
"""Standard errors that a mean is taken to lie higher, so that few images pass no limit by luck."""


def audit_summary(
    checkpoint: Checkpoint,
    paths: Sequence[Path],
    wire_dtype: str,
    image_size: int,
    *,
    precisions: Sequence[Precision] = ("fp32",),
    max_psnr_db: float | None = None,
    max_fsinfo: float | None = None,
    named: bool = False,
) -> dict[str, Any] | None:
    """What a bundle's manifest says of its model's audits: the one that found most.

    Args:
        checkpoint: about to be exported.
        paths: of its ``audit.json``, one at least for each precision.
        wire_dtype: of the export; an audit of float32 features holds for every other, which is rounded from them.
        image_size: of the export.
        precisions: of the export. A limit wants an audit of each: another precision's encoder sends other features.
        max_psnr_db: no attack on any adversary of the threat model may reach more, on whichever images it met, at the
            upper end of the one-sided 95 % interval of its mean.
        max_fsinfo: nor may FSInfo be more, in nats a dimension and likewise at the upper end, of a model that adds
            Gaussian noise.
        named: the user chose these files; others may be missing, or be of another model, unless a limit is set.

    Returns:
        The summary; None without an audit of these weights.

    Raises:
        LeakageError: with ``named`` or a limit, a file is missing, or of other weights or settings, another wire dtype
            or size; with ``named``, none is of a precision that is exported; with a limit, a precision has none, or one
            lacks an adversary, an attack or what the limit is about, or is over it.
        DataError: a file is no audit.
    """
    limited = max_psnr_db is not None or max_fsinfo is not None
    found: dict[Precision, list[tuple[AuditReport, Path]]] = {}
    for path in paths:
        if path.is_file():
            report = load_report(path)
            reason = _unfit(report, checkpoint, wire_dtype, image_size)
        else:
            missing = "is not a file" if path.exists() else "is missing"
            reason = f"{missing}: no audit to hold the export to; edgesdk audit makes one, --audit names it"
        if reason is None:
            found.setdefault(report.precision, []).append((report, path))
        elif limited or named:
            raise LeakageError(f"{path}: {reason}")
    if limited:
        for precision in precisions:
            if precision not in found:
                raise LeakageError(
                    f"no audit of the {precision} encoder, which sends other features than the audited "
                    f"{', '.join(found)}; edgesdk audit --precision {precision} makes one, and --audit names every one"
                )
            for report, path in found[precision]:
                if max_psnr_db is not None:
                    _check_psnr(report, path, max_psnr_db)
                if max_fsinfo is not None:
                    _check_fsinfo(report, path, max_fsinfo)
    exported = [each for precision in precisions for each in found.get(precision, [])]
    if named and not exported:
        raise LeakageError(
            f"--audit names audits of {', '.join(found)} alone, which is not exported; add --precision, or audit the "
            f"{precisions[0]} encoder"
        )
    return _summary(*max(exported, key=_leaks)) if exported else None


def _unfit(report: AuditReport, checkpoint: Checkpoint, wire_dtype: str, image_size: int) -> str | None:
    """Why the audit is not of what is exported."""
    if report.weights_sha256 != checkpoint.weights_sha256:
        return "is of other weights; audit this model"
    settings = completed_settings(report.defense, report.config)
    if (report.defense, settings) != (checkpoint.defense, checkpoint.settings):
        return f"is of {report.defense} with other settings; audit this model"
    if report.wire_dtype not in ("float32", wire_dtype):
        return f"is of {report.wire_dtype} features, not {wire_dtype}; audit those, or float32"
    if report.image_size != image_size:
        return f"is of {report.image_size}x{report.image_size} images, not {image_size}x{image_size}"
    return None


def _leaks(found: tuple[AuditReport, Path]) -> float:
    """What the best attack reached, dB; least where none was made."""
    made = [view.best_attack.psnr_db for view in found[0].views if view.in_threat_model and view.attacks]
    return max(made, default=-math.inf)


def _check_psnr(report: AuditReport, path: Path, limit: float) -> None:
    known = {view.name for view in report.views}
    for name, missing in left_out(report):
        if name not in known:
            raise LeakageError(f"{path}: lacks the adversary {name}; audit without --collude")
        raise LeakageError(f"{path}: {name} was not attacked by {', '.join(missing)}; audit without --attack")
    made = [(attack, view) for view in report.views if view.in_threat_model for attack in view.attacks]
    fewest = min(attack.num_images for attack, _ in made)
    if fewest < LEAST_IMAGES:
        raise LeakageError(f"{path}: {fewest} images were attacked; {LEAST_IMAGES} are the least")
    best, worst = max(made, key=lambda each: each[0].psnr_db)
    if not best.psnr_db <= limit:
        raise LeakageError(
            f"{path}: {best.name} rebuilds images from {worst.name} at {best.psnr_db:.2f} dB PSNR, more than "
            f"{limit:g} dB, over {best.num_images:,} images; nothing was exported"
        )
    best, worst = max(made, key=lambda each: _upper(each[0]))
    if not _upper(best) <= limit:
        raise LeakageError(
            f"{path}: {best.name} rebuilds images from {worst.name} at {best.psnr_db:.2f} dB PSNR, with 95 % "
            f"confidence at no more than {_upper(best):.2f} dB, which is more than {limit:g} dB, over "
            f"{best.num_images:,} images; nothing was exported"
        )


def _upper(attack: AttackResult) -> float:
    return attack.psnr_db + ONE_SIDED_95 * attack.psnr_std_error


def _check_fsinfo(report: AuditReport, path: Path, limit: float) -> None:
    found = {view.name: view.metric("FSInfo") for view in report.views}
    for name in (each.name for each in threat_model(report)):
        metric = found.get(name)
        if metric is None:
            raise LeakageError(f"{path}: has no FSInfo of {name}; audit with --metric fsinfo")
        if metric.assumed_noise is not None:
            raise LeakageError(
                f"{path}: {report.defense} adds no Gaussian noise, so that nothing bounds its FSInfo: the audit's "
                f"{metric.value:.3f} is of an assumed one; put fsinfoguard on it, or limit by --max-psnr"
            )
        if metric.std_error is None or metric.num_samples < LEAST_IMAGES:
            raise LeakageError(
                f"{path}: FSInfo of {name} is of {metric.num_samples} images; {LEAST_IMAGES} are the least"
            )
        upper = metric.value + ONE_SIDED_95 * metric.std_error
        if not upper <= limit:
            raise LeakageError(
                f"{path}: {name} has an FSInfo of {metric.value:.3f} nats a dimension, with 95 % confidence no more "
                f"than {upper:.3f}, which is more than {limit:g}; nothing was exported"
            )


def _summary(report: AuditReport, path: Path) -> dict[str, Any]:
    views = [view for view in report.views if view.in_threat_model]
    summary: dict[str, Any] = {
        "audit_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "weights_sha256": report.weights_sha256,
        "wire_dtype": report.wire_dtype,
        "precision": report.precision,
        "budget": report.budget,
        "num_adversaries": len(views),
    }
    if any(view.attacks for view in views):
        worst = report.worst
        best = worst.best_attack
        summary["best_attack"] = {
            "name": best.name,
            "adversary": worst.name,
            "psnr_db": round(best.psnr_db, 3),
            "psnr_p95_db": round(float(np.percentile(best.psnr_each, 95)), 3),
            "ssim": round(best.ssim, 4),
            "num_images": best.num_images,
        }
    if lacking := dict(left_out(report)):
        summary["left_out"] = lacking
    measured = (view.metric("FSInfo") for view in views)
    information = [metric.value for metric in measured if metric and metric.assumed_noise is None]
    if information:
        summary["fsinfo_nats_a_dimension"] = round(max(information), 4)
    return summary
