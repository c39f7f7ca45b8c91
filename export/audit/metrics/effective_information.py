"""Effective information volume: how many features say anything at all."""

from __future__ import annotations

from torch import Tensor

from ..results import MetricResult, mean_result


def effective_information(z: Tensor, seed: int | None = None) -> MetricResult:
    """Mean number of non-zero features an image (SiftFunnel, arXiv 2501.00824).

    Args:
        z: ``(N, ...)`` features as the server unpacks them; a uint8 wire's zero may have become half a step, so
            features within a millionth of the largest count as zero.
        seed: of the noise in them.
    """
    flat = z.flatten(1).double().abs()
    counts = (flat > 1e-6 * flat.max()).sum(1)
    return mean_result("effective information", counts.tolist(), "features", len(z), seed)
