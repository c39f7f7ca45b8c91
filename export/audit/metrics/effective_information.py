"""Effective information volume: how many features say anything at all."""

from __future__ import annotations

from torch import Tensor

from ..results import MetricResult, mean_result


def effective_information(z: Tensor, seed: int | None = None) -> MetricResult:
    """Mean number of non-zero features an image (SiftFunnel, arXiv 2501.00824).

    Zero is where a ReLU rests, and what follows it may move that elsewhere, as may a uint8 wire: each feature's own
    most common value over the images is its zero here [ours]. Of features with noise on them all count, however little
    they say.

    Args:
        z: ``(N, ...)`` features as the server unpacks them.
        seed: of the noise in them.
    """
    flat = z.flatten(1)
    counts = (flat != flat.mode(0).values).sum(1)
    return mean_result("effective information", counts.tolist(), "features", len(z), seed)
