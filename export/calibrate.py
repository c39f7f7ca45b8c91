"""Noise for a target leakage: the sigma at which FSInfo, or the PSNR that it allows, is what was asked for.

Without a prior, where there are as many independent features as pixels, it is
``log sigma = (E 1/2 log det J^T J - d/2 log(2 pi e) - target) / d`` in closed form (FSInfoGuard, arXiv 2504.10016).
With one, which any funnel needs, it is one monotone equation over the same eigenvalues, solved by bisection [ours].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

from edge_sdk.errors import ConfigError
from edge_sdk.progress import track

from .audit.metrics.fsinfo import Prior, Spectrum, fsinfo, spectrum
from .checkpoint import Checkpoint
from .data import Images, Splits
from .defenses import ModelConfig, SplitModel
from .defenses.fsinfoguard import guarded_weights
from .shipped import keyed_modules

LOW, HIGH = 1e-6, 1e6  # of sigma, in units of the features
LOWEST_CEILING = 10 * math.log10(4)
"""dB, of the variance that pixels in [0, 1] have at most."""


def guarded(
    base: Checkpoint,
    splits: Splits,
    *,
    fsinfo_target: float | None,
    psnr_ceiling: float | None,
    num_images: int,
    seed: int,
) -> tuple[dict[str, object], dict[str, Tensor]]:
    """A trained model with noise calibrated to a target: what FSInfoGuard's training begins with.

    Args:
        base: without noise of its own.
        splits: the data that it was trained on.
        fsinfo_target: nats a dimension.
        psnr_ceiling: dB.
        num_images: training images that are calibrated on.
        seed: of their choice.

    Returns:
        FSInfoGuard's settings, and the weights to start from.

    Raises:
        ConfigError: not exactly one target, one that no noise can meet, or a base with noise or keys.
    """
    model = base.build()
    if model.noise is not None:
        raise ConfigError(f"{base.defense} draws noise already; choose a base without")
    if keyed_modules(model):
        raise ConfigError(f"{base.defense} deals by a user's key, and noise is calibrated to one; choose another base")
    targets = {"fsinfo_target": fsinfo_target, "psnr_ceiling": psnr_ceiling}
    # As many as an audit's: a covariance of fewer images has a smaller determinant, and FSInfo would be another.
    num_prior = len(splits.auxiliary)
    sigma = calibrated_sigma(model, splits.train, num_images=num_images, num_prior=num_prior, seed=seed, **targets)
    return {**on_top_of(base), "sigma": sigma, **targets}, guarded_weights(base.weights, sigma)


def on_top_of(base: Checkpoint) -> dict[str, object]:
    """FSInfoGuard's settings that a base decides."""
    own = {k: v for k, v in asdict(base.config).items() if k not in ModelConfig.__dataclass_fields__}
    shared = {name: getattr(base.config, name) for name in ModelConfig.__dataclass_fields__}
    return {**shared, "base": base.defense, "base_settings": own}


def check_target(fsinfo_target: float | None, psnr_ceiling: float | None) -> None:
    """Refuse what no images allow, before there are any.

    Raises:
        ConfigError: not exactly one target, or one that no noise can meet.
    """
    if (fsinfo_target is None) == (psnr_ceiling is None):
        raise ConfigError("give one of --fsinfo-target and --psnr-ceiling")
    if fsinfo_target is not None and not math.isfinite(fsinfo_target):
        raise ConfigError(f"no noise gives {fsinfo_target:g} nats a dimension here; expected a finite number")
    if psnr_ceiling is not None and not LOWEST_CEILING < psnr_ceiling < math.inf:
        raise ConfigError(
            f"no noise gives {psnr_ceiling:g} dB here: who knows nothing but the mean image has {LOWEST_CEILING:.2f} "
            "dB at least"
        )


def calibrated_sigma(
    model: SplitModel,
    images: Images,
    *,
    fsinfo_target: float | None = None,
    psnr_ceiling: float | None = None,
    num_images: int = 32,
    num_prior: int = 10_000,
    seed: int = 0,
) -> tuple[float, ...]:
    """Noise for each share, so that whoever sees it alone is held to the target.

    Args:
        model: in inference mode, without noise.
        images: training images: the prior is their covariance, the Jacobian's mean is over some of them.
        fsinfo_target: nats a dimension.
        psnr_ceiling: dB that the worst-case bound on the error allows.
        num_images: Jacobians to average over.
        num_prior: images of the prior, at most.
        seed: of the images' choice.

    Raises:
        ConfigError: not exactly one target, or one that no noise can meet.
    """
    check_target(fsinfo_target, psnr_ceiling)
    pixels = torch.from_numpy(images.pixels).permute(0, 3, 1, 2).float() / 255
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
    prior, chosen = Prior.of(pixels[order[:num_prior]]), pixels[order[:num_images]]
    _check_reachable(prior, chosen[0].numel(), fsinfo_target, psnr_ceiling)
    sigmas = []
    for k in range(len(model.tails)):
        steps = track(chosen, len(chosen), f"Jacobians of share {k}")
        spectra = [spectrum(lambda x, k=k: (model.shares(x)[k],), image, prior) for image in steps]  # type: ignore[misc]
        sigmas.append(_solve(spectra, fsinfo_target, psnr_ceiling))
    return tuple(sigmas)


def _check_reachable(prior: Prior, num_pixels: int, fsinfo_target: float | None, psnr_ceiling: float | None) -> None:
    """Before the Jacobians, which take minutes: no noise leaves less than the prior alone tells."""
    information, _, ceiling = fsinfo([Spectrum(torch.zeros(0), torch.zeros(0), prior, num_pixels)], 1.0)
    least, target, unit = (
        (information.value, fsinfo_target, "nats a dimension")
        if psnr_ceiling is None
        else (ceiling.value, psnr_ceiling, "dB")
    )
    assert target is not None
    if not least < target:
        raise ConfigError(f"no noise gives {target:g} {unit} here: the images' own statistics give {least:.3f} already")


def _solve(spectra: list[Spectrum], fsinfo_target: float | None, psnr_ceiling: float | None) -> float:
    def leaks(sigma: float) -> float:
        information, _, ceiling = fsinfo(spectra, sigma)
        return information.value if psnr_ceiling is None else ceiling.value

    target = fsinfo_target if psnr_ceiling is None else psnr_ceiling
    assert target is not None
    least, most = leaks(HIGH), leaks(LOW)
    if not least < target < most:
        unit = "nats a dimension" if psnr_ceiling is None else "dB"
        raise ConfigError(
            f"no noise gives {target:g} {unit} here: the images' own statistics give {least:.3f}, the features "
            f"without noise {most:.3f}"
        )
    return _bisect(leaks, target)


def _bisect(falling: Callable[[float], float], target: float) -> float:
    """Where a falling function of sigma meets the target, to a millionth."""
    low, high = math.log(LOW), math.log(HIGH)
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if falling(math.exp(middle)) > target else (low, middle)
    return math.exp((low + high) / 2)
