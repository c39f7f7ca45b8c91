"""Entropy of the features, each taken by itself."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..results import MetricResult, mean_result

BINS = 256


def feature_entropy(z: Tensor, *, seed: int = 0) -> MetricResult:
    """What an ideal coder that treats every feature by itself needs for one image's features, in bits.

    Each feature is rounded to 256 steps between its extremes over all images, as a uint8 wire would. The coder's
    frequencies (half a count added to each step, after Krichevsky and Trofimov) come from one half of the images, the
    code lengths from the other. An upper bound of the joint entropy: dependence between features is not used.

    Args:
        z: ``(N, ...)`` features, at least 4 images.
        seed: of the halves.
    """
    flat = z.flatten(1).double().cpu().numpy()
    low, high = flat.min(0), flat.max(0)
    steps = np.rint((flat - low) / np.where(high > low, high - low, 1) * (BINS - 1)).astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(flat))
    known, coded = order[: len(order) // 2], order[len(order) // 2 :]
    numbers = np.arange(flat.shape[1])
    counts = np.full((flat.shape[1], BINS), 0.5)
    np.add.at(counts, (np.broadcast_to(numbers, (len(known), len(numbers))), steps[known]), 1)
    # A feature that never varies needs no bits, whatever the smoothing says.
    bits = np.where(high > low, -np.log2(counts / counts.sum(1, keepdims=True)).T, 0.0)
    lengths = bits[steps[coded], numbers].sum(1)
    return mean_result("feature entropy", lengths.tolist(), "bits an image", len(coded), seed)
