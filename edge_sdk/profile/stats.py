"""Statistics of repeated timings."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

__all__ = ["LatencyStats"]


class LatencyStats(msgspec.Struct, frozen=True):
    """Distribution of measured times in milliseconds; percentiles interpolate linearly, std is of the sample."""

    num_samples: int
    num_warmup: int
    mean_ms: float
    std_ms: float
    min_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, samples_ms: Sequence[float], num_warmup: int) -> LatencyStats:
        """Statistics of at least one sample."""
        samples = np.asarray(samples_ms, dtype=np.float64)
        p50, p90, p95, p99 = (float(p) for p in np.percentile(samples, (50, 90, 95, 99)))
        return cls(
            num_samples=len(samples),
            num_warmup=num_warmup,
            mean_ms=float(samples.mean()),
            std_ms=float(samples.std(ddof=1)) if len(samples) > 1 else 0.0,
            min_ms=float(samples.min()),
            p50_ms=p50,
            p90_ms=p90,
            p95_ms=p95,
            p99_ms=p99,
            max_ms=float(samples.max()),
        )
