"""What an audit found: the record that the report is drawn from, and that an export can be held to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_sdk.bundle import Precision
from edge_sdk.errors import DataError

from ..defenses import BASELINE

FORMAT_VERSION = 1
AUDIT_FILE = "audit.json"


class MetricResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A measured value.

    Attributes:
        name: the metric's.
        value: in ``unit``.
        unit: of value and std_error.
        std_error: of the mean over images (or over disjoint groups of them); None where it cannot be had.
        num_samples: images measured on.
        seed: of whatever was drawn.
        assumed_noise: standard deviation of noise that the device does not add, in the typical deviation of each
            channel's features, where the metric would be infinite without; None where nothing was assumed.
    """

    name: str
    value: float
    unit: str
    std_error: float | None
    num_samples: int
    seed: int | None = None
    assumed_noise: float | None = None

    @property
    def title(self) -> str:
        """The name, and what was assumed for it."""
        return self.name if self.assumed_noise is None else f"{self.name}, noise of {self.assumed_noise:.0%} assumed"


class AttackResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One attack on one view, over images that neither the model nor the attacker was trained on.

    Attributes:
        name: the attack's.
        settings: of the attack; of the better one on validation images where several were tried.
        num_images: attacked.
        mse: mean over images, on [0, 1].
        psnr_db: mean over images of each image's own.
        psnr_std_error: of that mean.
        ssim: mean over images.
        ssim_std_error: of that mean.
        psnr_each: every image's, in their order.
        seconds: that it took, fitting included; since it was last resumed, where it was stopped.
        mse_std_error: of the mean; None in an audit from before it was kept.
    """

    name: str
    settings: dict[str, Any]
    num_images: int
    mse: float
    psnr_db: float
    psnr_std_error: float
    ssim: float
    ssim_std_error: float
    psnr_each: tuple[float, ...]
    seconds: float
    mse_std_error: float | None = None

    def over(self, count: int) -> float:
        """Mean PSNR over the first so many images, dB: all attacks of all audits meet the same first ones."""
        return float(np.mean(self.psnr_each[:count]))


class ViewResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was found of one adversary: a server, or several that collude.

    Attributes:
        name: ``server0``, ``server0+server2``, ….
        servers: their numbers.
        in_threat_model: whether the defense claims anything against so many.
        num_features: that they see of an image.
        metrics: in the order measured.
        attacks: in the order made.
    """

    name: str
    servers: tuple[int, ...]
    in_threat_model: bool
    num_features: int
    metrics: tuple[MetricResult, ...]
    attacks: tuple[AttackResult, ...]

    @property
    def best_attack(self) -> AttackResult:
        """The one with the highest PSNR, the headline: on the images that all of them attacked, the first of each."""
        return max(self.attacks, key=lambda attack: attack.over(self.num_met))

    @property
    def num_met(self) -> int:
        """Images that all attacks met: the first of each."""
        return min(attack.num_images for attack in self.attacks)

    def floor(self, attack: AttackResult) -> float | None:
        """PSNR of the blind attack on the images that an attack met, dB; None where it was not made."""
        blind = next((each for each in self.attacks if each.name == "blind"), None)
        return blind.over(attack.num_images) if blind else None

    def metric(self, name: str) -> MetricResult | None:
        """The metric of that name, None where it was not measured."""
        return next((each for each in self.metrics if each.name == name), None)


class AuditReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The audit of one trained model.

    Attributes:
        format_version: of this record.
        weights_sha256: of the model's weights: an audit is of these alone.
        defense: its name.
        config: its settings.
        image_size: height and width.
        accuracy: of the model, by part of the data.
        edge_flops: of the encoder, for one image.
        wire_bytes: that leave the device for one image.
        wire_dtype: that the features were attacked in.
        precision: of the encoder that was attacked.
        data: record of the splits; the attacker had ``auxiliary``, was judged on ``test``.
        budget: name of the attacks' sizes.
        seed: of everything drawn.
        machine: hardware and software.
        code_sha256: of what measured; empty in an audit from before it was kept.
        views: one for each adversary.
    """

    format_version: int = FORMAT_VERSION
    weights_sha256: str
    defense: str
    config: dict[str, Any]
    image_size: int
    accuracy: dict[str, float]
    edge_flops: int
    wire_bytes: int
    wire_dtype: str
    data: dict[str, Any]
    budget: str
    seed: int
    machine: dict[str, Any]
    views: tuple[ViewResult, ...]
    precision: Precision = "fp32"
    code_sha256: str = ""

    @property
    def title(self) -> str:
        """The defense, and the one that it was put on."""
        base = self.config.get("base", BASELINE)
        return self.defense if base == BASELINE else f"{self.defense} on {base}"

    @property
    def worst(self) -> ViewResult:
        """The adversary of the threat model who rebuilt most."""
        return worst_of([view for view in self.views if view.in_threat_model and view.attacks])


def reached(views: Sequence[ViewResult]) -> tuple[list[float], int]:
    """What the best attack of each adversary reached, dB, all on the same images, and how many those are.

    They are the first ones, as many as each of these attacks met: all that another attack met fewer of is no matter.
    """
    best = [view.best_attack for view in views]
    met = min((attack.num_images for attack in best), default=0)
    return [attack.over(met) for attack in best], met


def worst_of(views: Sequence[ViewResult]) -> ViewResult:
    """The adversary who rebuilt most, of some who attacked."""
    values, _ = reached(views)
    return views[values.index(max(values))]


def differences(one: AuditReport, other: AuditReport) -> list[str]:
    """What keeps the figures of two audits from being compared; nothing where they can be.

    The images, the attackers' means and seed, what measured, and how many images an attack met that both made.
    """
    found = [
        words
        for words, field in (("images", "data"), ("size of images", "image_size"), ("budget", "budget"),
                             ("seed", "seed"), ("attackers' code", "code_sha256"))
        if getattr(one, field) != getattr(other, field)
    ]  # fmt: skip
    mine, theirs = (
        {attack.name: attack.num_images for view in each.views for attack in view.attacks} for each in (one, other)
    )
    if any(mine[name] != theirs[name] for name in mine.keys() & theirs.keys()):
        found.append("number of images")
    return found


def load_report(path: Path) -> AuditReport:
    """An audit that was written before.

    Raises:
        DataError: no such file, or not an audit of this version.
    """
    try:
        report = msgspec.json.decode(path.read_bytes(), type=AuditReport)
    except OSError as error:
        raise DataError(f"{path}: no audit there ({error.strerror}); edgesdk audit makes one") from error
    except msgspec.DecodeError as error:
        raise DataError(f"{path}: not an audit ({error})") from error
    if report.format_version != FORMAT_VERSION:
        raise DataError(f"{path}: audit of format {report.format_version}, expected {FORMAT_VERSION}; audit again")
    return report


def mean_result(name: str, values: Sequence[float], unit: str, num_samples: int, seed: int | None) -> MetricResult:
    """The mean of independent values, with its standard error.

    Args:
        name: the metric's.
        values: one for each image or for each group of images.
        unit: of the values.
        num_samples: images in all.
        seed: of what was drawn.
    """
    mean, error = mean_and_error(values)
    return MetricResult(name, mean, unit, error if len(values) > 1 else None, num_samples, seed)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error, which is 0 for one value."""
    array = np.asarray(values, np.float64)
    error = float(array.std(ddof=1)) / math.sqrt(len(array)) if len(array) > 1 else 0.0
    return float(array.mean()), error
