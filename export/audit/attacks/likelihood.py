"""White-box maximum likelihood: search the image whose features are those that were seen (He et al., ACSAC 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..images import sample
from ..scale import typical
from .base import Features, Progress, Rebuild, View
from .joined import sample_features

TV_WEIGHTS = (1e-3, 1e-2, 1e-1, 1.0)
PARTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the way from the mean image to what was found."""

TUNING_IMAGES = 16
OPTIMIZERS = ("adam", "sgd")


@dataclass(frozen=True, kw_only=True)
class LikelihoodAttack:
    """Minimises ``|f(x) - z|^2 / c + weight sqrt(TV(x))`` over images in [0, 1].

    ``c`` is what the attacker's own images have for ``|z - mean z|^2``, on average. Shares with noise count in units of
    it, features without as they are, or in units of their channel's typical deviation [ours]: there a loud channel
    drowns the others, here one that is mostly silent counts too much. Features that were dropped do not count.

    Every image is searched from several starts, by Adam and by SGD with momentum, and the end with the lowest objective
    kept: which is closest to the original the attacker cannot see. Of the units, of four weights of the total variation
    and of five parts of the way from the mean image to what is found [ours], those are taken that do best on the
    attacker's own images.

    Attributes:
        steps: of each search.
        restarts: starts: the mean image first, then uniform noise.
        seed: of the noise.
    """

    steps: int = 500
    restarts: int = 2
    seed: int = 0
    name: str = "maximum likelihood"

    def fit(self, view: View, images: Tensor, state: Path | None, progress: Progress) -> Rebuild:
        torch.manual_seed(self.seed)  # of the noise in what is observed
        mean = images.float().mean(0) / 255
        known = sample_features(view, images)
        choices = [(_to_one(units, known), weight) for units in _units(view, known) for weight in TV_WEIGHTS]
        own = sample(images, TUNING_IMAGES).float() / 255
        seen = view.observe(own)
        tried = []
        for i, (units, weight) in enumerate(choices):
            found = self._search(view, units, seen, mean, weight, 1)
            for part in PARTS:
                error = float((torch.lerp(mean, found, part) - own).square().mean())
                tried.append((error, units, weight, part))
            progress(i + 1, len(choices))
        _, units, weight, part = min(tried, key=lambda each: each[0])

        def rebuild(features: Features) -> Tensor:
            found = self._search(view, units, features, mean, weight, self.restarts)
            return torch.lerp(mean, found, part).clamp(0, 1)

        return rebuild

    def _search(
        self, view: View, units: Features, seen: Features, mean: Tensor, weight: float, restarts: int
    ) -> Tensor:
        best, lowest = torch.empty(0), torch.empty(0)
        for start in self._starts(mean, len(seen[0]), restarts):
            start = start.to(view.device)
            for optimizer in OPTIMIZERS:
                found, objective = _descend(view, units, seen, start, weight, optimizer, self.steps)
                if not len(lowest):
                    best, lowest = found, objective
                better = objective < lowest
                best = torch.where(better[:, None, None, None], found, best)
                lowest = torch.where(better, objective, lowest)
        return best.cpu()

    def _starts(self, mean: Tensor, count: int, restarts: int) -> Iterator[Tensor]:
        yield mean.expand(count, *mean.shape)
        draw = torch.Generator().manual_seed(self.seed)
        for _ in range(restarts - 1):
            yield torch.rand(count, *mean.shape, generator=draw)


def _units(view: View, known: Features) -> list[Features]:
    """What a misfit of each share may be measured in."""
    if view.noise is not None:
        return [tuple(torch.tensor(sigma) for sigma in view.noise)]
    return [tuple(typical(z)[1] for z in known), tuple(torch.ones(()) for _ in known)]


def _to_one(units: Features, known: Features) -> Features:
    """The units in which an image's features lie 1 from the mean of all, by the root of the mean of squares."""
    apart = [(z - z.mean(0)) / unit for z, unit in zip(known, units, strict=True)]
    total = torch.stack([each.square().flatten(1).sum(1).mean() for each in apart]).sum().sqrt().clamp_min(1e-12)
    return tuple(unit * total for unit in units)


def _descend(
    view: View, units: Features, seen: Features, start: Tensor, weight: float, optimizer: str, steps: int
) -> tuple[Tensor, Tensor]:
    """Images and their objectives ``(N,)``, the lowest met on the way: momentum can end above it."""
    images = start.clone().requires_grad_()
    method: torch.optim.Optimizer
    if optimizer == "adam":
        method = torch.optim.Adam([images], lr=0.02)
    else:
        method = torch.optim.SGD([images], lr=1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(method, steps)
    best, lowest = start.clone(), start.new_full((len(start),), torch.inf)
    for _ in range(steps):
        objective = _objective(view, units, seen, images, weight)
        with torch.no_grad():
            better = objective < lowest
            best[better], lowest[better] = images[better], objective[better]
        method.zero_grad()
        objective.sum().backward()
        method.step()
        with torch.no_grad():
            images.clamp_(0, 1)
        schedule.step()
    return best, lowest


def _objective(view: View, units: Features, seen: Features, images: Tensor, weight: float) -> Tensor:
    made = torch.cat([(z / unit).flatten(1) for z, unit in zip(view.features(images), units, strict=True)], 1)
    wanted = torch.cat([(z / unit).flatten(1) for z, unit in zip(seen, units, strict=True)], 1)
    apart = made - wanted
    if view.drops:
        apart = apart * (wanted != 0)
    return apart.square().sum(1) + weight * _total_variation(images).add(1e-12).sqrt()


def _total_variation(images: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels of each image, ``(N,)``."""
    down, right = images.diff(dim=2), images.diff(dim=3)
    return down.square().flatten(1).mean(1) + right.square().flatten(1).mean(1)
