"""Bias-corrected distance correlation: dependence of any form between images and features."""

from __future__ import annotations

import torch
from torch import Tensor

from ..results import MetricResult, mean_result

GROUP = 250


def distance_correlation(x: Tensor, z: Tensor, *, seed: int = 0) -> MetricResult:
    """The mean over groups of 250 images of the bias-corrected squared distance correlation, 0 for independence.

    Unlike the plain one, which grows with the dimensions, it is near 0 for independent variables of any dimension, and
    can be slightly negative (Székely and Rizzo, "The distance correlation t-test of independence in high dimension",
    J. Multivariate Analysis 117, 2013, section 2).

    Args:
        x: ``(N, ...)`` images, at least 8.
        z: ``(N, ...)`` features.
        seed: of the groups.
    """
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    groups = [rows for rows in order.split(GROUP) if len(rows) == min(GROUP, len(x))]
    values = [_corrected(x[rows], z[rows]) for rows in groups]
    return mean_result("distance correlation", values, "squared, bias-corrected", sum(map(len, groups)), seed)


def _corrected(x: Tensor, z: Tensor) -> float:
    a, b = _u_centered(x), _u_centered(z)
    n = len(x)

    def product(p: Tensor, q: Tensor) -> Tensor:
        return (p * q).sum() / (n * (n - 3))

    scale = (product(a, a) * product(b, b)).sqrt()
    return float(product(a, b) / scale) if scale > 0 else 0.0


def _u_centered(x: Tensor) -> Tensor:
    """Distances, centred so that rows sum to 0 without their diagonal (definition 2 of the source)."""
    n = len(x)
    distances = torch.cdist(x.flatten(1).double(), x.flatten(1).double())
    rows = distances.sum(1, keepdim=True) / (n - 2)
    centered = distances - rows - rows.T + distances.sum() / ((n - 1) * (n - 2))
    return centered.fill_diagonal_(0)
