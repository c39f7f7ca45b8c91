"""An export held to its audit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from edge_sdk.errors import LeakageError

from ..checkpoint import Checkpoint
from ..defenses import completed_settings
from .results import AuditReport, load_report
from .run import ATTACKS, adversaries

LEAST_IMAGES = 16
"""That each attack of an audit must have met, where an export is held to it."""


def audit_summary(
    checkpoint: Checkpoint,
    path: Path,
    wire_dtype: str,
    image_size: int,
    *,
    max_psnr_db: float | None = None,
    max_fsinfo: float | None = None,
) -> dict[str, Any] | None:
    """What a bundle's manifest says of its model's audit.

    Args:
        checkpoint: about to be exported.
        path: of its ``audit.json``, which may be missing unless a limit is set.
        wire_dtype: of the export; an audit of float32 features holds for every other, which is rounded from them.
        image_size: of the export.
        max_psnr_db: no attack on any adversary of the threat model may reach more, on whichever images it met.
        max_fsinfo: nor may FSInfo be more, in nats a dimension.

    Returns:
        The summary; None without an audit of these weights.

    Raises:
        LeakageError: a limit is set, and the audit is missing, of other weights or settings, another wire dtype or
            size, lacks an adversary, an attack or what the limit is about, or is over it.
        DataError: the file is no audit.
    """
    limited = max_psnr_db is not None or max_fsinfo is not None
    if not path.is_file():
        if limited:
            raise LeakageError(f"{path}: no audit to hold the export to; edgesdk audit makes one, --audit names it")
        return None
    report = load_report(path)
    reason = None
    if report.weights_sha256 != checkpoint.weights_sha256:
        reason = "is of other weights; audit this model"
    elif (report.defense, completed_settings(report.defense, report.config)) != (
        checkpoint.defense,
        checkpoint.settings,
    ):
        reason = f"is of {report.defense} with other settings; audit this model"
    elif report.wire_dtype not in ("float32", wire_dtype):
        reason = f"is of {report.wire_dtype} features, not {wire_dtype}; audit those, or float32"
    elif report.image_size != image_size:
        reason = f"is of {report.image_size}x{report.image_size} images, not {image_size}x{image_size}"
    if reason is not None:
        if limited:
            raise LeakageError(f"{path}: {reason}")
        return None
    if max_psnr_db is not None:
        _check_psnr(report, path, max_psnr_db)
    if max_fsinfo is not None:
        _check_fsinfo(report, path, max_fsinfo)
    return _summary(report, path)


def _check_psnr(report: AuditReport, path: Path, limit: float) -> None:
    for name in _needed(report):
        view = next((view for view in report.views if view.name == name), None)
        if view is None:
            raise LeakageError(f"{path}: lacks the adversary {name}; audit without --collude")
        met = {attack.name: attack.num_images for attack in view.attacks}
        if missing := [attack for attack in ATTACKS if attack not in met]:
            raise LeakageError(f"{path}: {name} was not attacked by {', '.join(missing)}; audit without --attack")
        if min(met.values()) < LEAST_IMAGES:
            raise LeakageError(f"{path}: {min(met.values())} images were attacked; {LEAST_IMAGES} are the least")
    made = [(attack, view) for view in report.views if view.in_threat_model for attack in view.attacks]
    best, worst = max(made, key=lambda each: each[0].psnr_db)
    if best.psnr_db > limit:
        raise LeakageError(
            f"{path}: {best.name} rebuilds images from {worst.name} at {best.psnr_db:.2f} dB PSNR, more than "
            f"{limit:g} dB; nothing was exported"
        )


def _check_fsinfo(report: AuditReport, path: Path, limit: float) -> None:
    found = {view.name: view.metric("FSInfo") for view in report.views}
    for name in _needed(report):
        metric = found.get(name)
        if metric is None:
            raise LeakageError(f"{path}: has no FSInfo of {name}; audit with --metric fsinfo")
        if metric.value > limit:
            raise LeakageError(
                f"{path}: {name} has an FSInfo of {metric.value:.3f} nats a dimension, more than {limit:g}; "
                "nothing was exported"
            )


def _needed(report: AuditReport) -> list[str]:
    """Names of the adversaries that the defense claims something against."""
    servers = {server for view in report.views for server in view.servers}
    return [each.name for each in adversaries(len(servers), None) if each.in_threat_model]


def _summary(report: AuditReport, path: Path) -> dict[str, Any]:
    views = [view for view in report.views if view.in_threat_model]
    summary: dict[str, Any] = {
        "audit_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "weights_sha256": report.weights_sha256,
        "wire_dtype": report.wire_dtype,
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
            "ssim": round(best.ssim, 4),
            "num_images": best.num_images,
        }
    information = [metric.value for view in views if (metric := view.metric("FSInfo"))]
    if information:
        summary["fsinfo_nats_a_dimension"] = round(max(information), 4)
    return summary
