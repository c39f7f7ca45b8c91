"""Statistics of repeated timings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

__all__ = ["STEADY", "UNSTEADY", "LatencyStats", "median_interval"]

UNSTEADY = 0.025
"""Coefficient of variation above which trtexec warns that timings vary."""

STEADY = 0.02
"""Half the 95 % interval of a median, as a share of it, at which measuring can stop."""


class LatencyStats(msgspec.Struct, frozen=True):
    """Distribution of measured times in milliseconds; percentiles interpolate linearly, std is of the sample.

    ``p50_low_ms`` and ``p50_high_ms`` bound the median with 95 % confidence.
    """

    num_samples: int
    num_warmup: int
    mean_ms: float
    std_ms: float
    min_ms: float
    p50_ms: float
    p50_low_ms: float
    p50_high_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, samples_ms: Sequence[float], num_warmup: int) -> LatencyStats:
        """Statistics of at least one sample."""
        samples = np.asarray(samples_ms, dtype=np.float64)
        low, high = median_interval(samples_ms)
        p50, p90, p95, p99 = (float(p) for p in np.percentile(samples, (50, 90, 95, 99)))
        return cls(
            num_samples=len(samples),
            num_warmup=num_warmup,
            mean_ms=float(samples.mean()),
            std_ms=float(samples.std(ddof=1)) if len(samples) > 1 else 0.0,
            min_ms=float(samples.min()),
            p50_ms=p50,
            p50_low_ms=low,
            p50_high_ms=high,
            p90_ms=p90,
            p95_ms=p95,
            p99_ms=p99,
            max_ms=float(samples.max()),
        )

    @property
    def variation(self) -> float:
        """Coefficient of variation: std over mean."""
        return self.std_ms / self.mean_ms if self.mean_ms else 0.0

    @property
    def steady(self) -> bool:
        """Whether the median is known to 2 % either way."""
        return max(self.p50_high_ms - self.p50_ms, self.p50_ms - self.p50_low_ms) <= STEADY * self.p50_ms


def median_interval(samples: Sequence[float]) -> tuple[float, float]:
    """Bounds of the median with 95 % confidence, from order statistics: no distribution is assumed.

    Ranks ``n/2 - 0.98 sqrt(n)`` and ``1 + n/2 + 0.98 sqrt(n)`` (Conover, Practical Nonparametric Statistics, section
    3.2); with fewer than six samples the smallest and the largest, whose confidence is less.
    """
    ordered = sorted(samples)
    n = len(ordered)
    low = max(math.floor(n / 2 - 0.98 * math.sqrt(n)) - 1, 0)
    high = min(math.ceil(n / 2 + 0.98 * math.sqrt(n)), n - 1)
    return float(ordered[low]), float(ordered[high])
