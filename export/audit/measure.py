"""The metrics of what some servers see, on the attackers' images: the model was trained on none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import msgspec
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
from .scale import typical
from .target import ServerView

METRICS = ("fsinfo", "mine", "dcor", "entropy", "effective")
BATCH = 100
ASSUMED_NOISE = 0.01
"""Of each channel's typical deviation: what FSInfo assumes where a defense draws no noise [ours]. Without any noise
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
        return [effective_information(z, self._seed)]

    def _fsinfo(self, progress: Callable[[int, int], None]) -> list[MetricResult]:
        view, noise = self._view, self._noise()
        chosen = sample(self._images.auxiliary, self._means.num_jacobians)
        prior = Prior(self._images.prior.factor.to(view.device))
        generator = torch.Generator().manual_seed(self._seed)
        spectra = []
        for i, image in enumerate(chosen):
            kept = view.draw_kept(generator)

            def in_units_of_noise(x: Tensor, kept: Sequence[Tensor] = kept) -> Features:
                shares = zip(view.shares(x), noise, kept, strict=True)
                return tuple(z * keep / sigma for z, sigma, keep in shares)

            spectra.append(spectrum(in_units_of_noise, image.to(view.device).float() / 255, prior))
            progress(i + 1, len(chosen))
        found = list(fsinfo(spectra, 1.0, self._seed))
        if view.noise is not None:
            return found
        return [msgspec.structs.replace(found[0], assumed_noise=ASSUMED_NOISE)]  # which no bound can be built on

    def _noise(self) -> list[Tensor]:
        """Standard deviation of the noise on each share, the device's or the assumed one."""
        if self._view.noise is not None:
            return [torch.tensor(sigma) for sigma in self._view.noise]
        images = sample(self._images.auxiliary, BATCH).to(self._view.device).float() / 255
        with torch.no_grad():
            deviations = [typical(z)[1] for z in self._view.features(images)]
        return [ASSUMED_NOISE * each for each in self._view.as_sent(deviations)]

    @cached_property
    def _observed(self) -> tuple[Tensor, Tensor]:
        """Images, float in [0, 1], and what the servers received of each, ``(N, numbers)``."""
        pixels = sample(self._images.auxiliary, self._means.num_metric_images).float() / 255
        torch.manual_seed(self._seed)
        z = torch.cat([_flat(self._view.observe(batch)) for batch in pixels.split(BATCH)])
        return pixels.to(self._view.device), z


def _flat(features: Iterable[Tensor]) -> Tensor:
    return torch.cat([z.flatten(1) for z in features], 1)
