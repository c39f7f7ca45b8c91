"""The terms of the defenses' objectives, as functions of tensors; each returns a scalar float tensor."""

from __future__ import annotations

import torch
from torch import Tensor


def smoothed_kl(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Mean KL(smooth(y) || softmax(logits)) in nats.

    ``smooth(y)`` gives the true class ``1 - smoothing`` and shares ``smoothing`` evenly among the others
    (SiftFunnel, arXiv 2501.00824, its reference implementation); of two mixed classes each is smoothed by its part.

    Args:
        logits: ``(N, num_classes)``.
        targets: ``(N, num_classes)``, the probability of each class.
        smoothing: in [0, 1).
    """
    num_classes = logits.shape[1]
    log_q = logits.log_softmax(1)
    p = targets * (1 - smoothing) + (1 - targets) * smoothing / (num_classes - 1)
    return (torch.special.xlogy(p, p) - p * log_q).sum(1).mean()


def distance_correlation(x: Tensor, z: Tensor) -> Tensor:
    """Distance correlation of two batches, in [0, 1] (Szekely et al., Ann. Statist. 35(6), 2007, definition 4).

    The V-statistic, which is what SiftFunnel (and NoPeek before it) minimises. It is biased upwards: independent
    batches of many dimensions do not score 0. An audit needs the bias-corrected estimator instead.

    Args:
        x: ``(N, ...)``, flattened per sample.
        z: ``(N, ...)``, the same N.
    """
    a, b = _centred_distances(x.flatten(1)), _centred_distances(z.flatten(1))
    squared = (a * b).mean() / ((a * a).mean() * (b * b).mean() + 1e-24).sqrt()
    # The floor keeps the root differentiable where a batch is constant: the correlation is then 1e-4, in place of 0.
    return squared.clamp_min(1e-8).sqrt()


def _centred_distances(x: Tensor) -> Tensor:
    # The Gram form of squared distances: one matrix product; the floor keeps the root's gradient finite at 0.
    squares = (x * x).sum(1)
    d = (squares[:, None] + squares[None, :] - 2 * x @ x.T).clamp_min(1e-10).sqrt()
    return d - d.mean(0, keepdim=True) - d.mean(1, keepdim=True) + d.mean()


def channel_correlation(z: Tensor) -> Tensor:
    """Mean squared Pearson correlation between different channels over positions, in [0, 1].

    SiftFunnel's linear constraint R(z). A channel that is constant in an image counts as uncorrelated.

    Args:
        z: ``(N, C, H, W)`` with C at least 2.
    """
    channels = z.shape[1]
    centred = z.flatten(2) - z.flatten(2).mean(2, keepdim=True)
    unit = centred / (centred.square().sum(2, keepdim=True) + 1e-12).sqrt()
    correlation = unit @ unit.transpose(1, 2)
    off_diagonal = 1 - torch.eye(channels, dtype=z.dtype, device=z.device)
    return (correlation * off_diagonal).square().sum((1, 2)).mean() / (channels * (channels - 1))


def feature_l1(z: Tensor) -> Tensor:
    """Mean absolute value of the features."""
    return z.abs().mean()
