"""The metrics of what some servers see, on the attackers' images: the model was trained on none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

import torch
from torch import Tensor

from .attacks.base import Features
from .budget import Budget
from .images import AuditImages, sample
from .metrics.distance_correlation import distance_correlation
from .metrics.effective_information import effective_information
from .metrics.entropy import feature_entropy
from .metrics.fsinfo import Prior, fsinfo, spectrum
from .metrics.mutual_information import mine
from .results import MetricResult
from .target import ServerView

METRICS = ("fsinfo", "mine", "dcor", "entropy", "effective")
BATCH = 100
NOMINAL_NOISE = 0.01
"""Of the features' standard deviation: what FSInfo assumes where a defense draws no noise [ours]. Without any noise
Fisher information is infinite."""


class Measurements:
    """Measures a view; what several metrics need is computed once.

    Args:
        view: what is seen.
        images: of the audit.
        means: how many of them to use.
        seed: of everything drawn.
    """

    def __init__(self, view: ServerView, images: AuditImages, means: Budget, seed: int) -> None:
        self._view, self._images, self._means, self._seed = view, images, means, seed

    def metric(self, name: str, progress: Callable[[int, int], None]) -> list[MetricResult]:
        """What the metric of that name, of METRICS, has to say; ``progress`` is called with the steps done and all."""
        progress(0, 1)
        if name == "fsinfo":
            return self._fsinfo(progress)
        pixels, z = self._observed
        if name == "mine":
            return [mine(pixels, z, seed=self._seed)]
        if name == "dcor":
            return [distance_correlation(pixels, z, seed=self._seed)]
        if name == "entropy":
            return [feature_entropy(z, seed=self._seed)]
        return [effective_information(z)]

    def _fsinfo(self, progress: Callable[[int, int], None]) -> list[MetricResult]:
        view = self._view
        noise = view.noise or (NOMINAL_NOISE * self._deviation(),) * len(view.servers)

        def in_units_of_noise(x: Tensor) -> Features:
            return tuple(z / sigma for z, sigma in zip(view.shares(x), noise, strict=True))

        chosen = sample(self._images.auxiliary, self._means.num_jacobians)
        prior = Prior(self._images.prior.factor.to(view.device))
        spectra = []
        for i, image in enumerate(chosen):
            spectra.append(spectrum(in_units_of_noise, image.to(view.device).float() / 255, prior))
            progress(i + 1, len(chosen))
        return list(fsinfo(spectra, 1.0))

    @cached_property
    def _observed(self) -> tuple[Tensor, Tensor]:
        """Images, float in [0, 1], and what the servers received of each, ``(N, numbers)``."""
        pixels = sample(self._images.auxiliary, self._means.num_metric_images).float() / 255
        torch.manual_seed(self._seed)
        z = torch.cat([_flat(self._view.observe(batch)) for batch in pixels.split(BATCH)])
        return pixels.to(self._view.device), z

    def _deviation(self) -> float:
        """Standard deviation of a feature over images, in the root of the mean of squares over features."""
        variances = self._observed[1].double().var(0)
        kept = variances[variances > 0]
        return float(kept.mean().sqrt()) if len(kept) else 1.0


def _flat(features: Iterable[Tensor]) -> Tensor:
    return torch.cat([z.flatten(1) for z in features], 1)
