"""What a device does to its features with random numbers, as part of a split model."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor, nn


class GaussianNoise(nn.Module):
    """Adds ``sigma_k`` times a standard normal number to every feature of share k."""

    sigma: Tensor

    def __init__(self, sigma: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("sigma", torch.tensor(tuple(sigma)))

    def forward(self, shares: tuple[Tensor, ...], drawn: list[Tensor]) -> tuple[Tensor, ...]:
        return tuple(z + sigma * n for z, sigma, n in zip(shares, self.sigma.unbind(), drawn, strict=True))


class FeatureDropout(nn.Module):
    """Sets each feature to zero with probability ``rate``, wherever its normal number is below that quantile."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.threshold = NormalDist().inv_cdf(rate)

    def forward(self, shares: tuple[Tensor, ...], drawn: list[Tensor]) -> tuple[Tensor, ...]:
        return tuple(z * (n >= self.threshold).to(z.dtype) for z, n in zip(shares, drawn, strict=True))
