import numpy as np
import pytest

from edge_sdk.errors import TensorError
from edge_sdk.profile.feeds import random_feeds
from edge_sdk.profile.machine import Machine
from edge_sdk.profile.stats import LatencyStats, median_interval
from edge_sdk.tensors import TensorSpec


def test_statistics_by_hand():
    stats = LatencyStats.of([4.0, 1.0, 3.0, 2.0, 5.0], num_warmup=7)
    assert (stats.num_samples, stats.num_warmup) == (5, 7)
    assert (stats.min_ms, stats.p50_ms, stats.mean_ms, stats.max_ms) == (1, 3, 3, 5)
    assert stats.std_ms == pytest.approx(2.5**0.5)
    assert (stats.p90_ms, stats.p95_ms, stats.p99_ms) == pytest.approx((4.6, 4.8, 4.96))


def test_the_medians_interval_is_of_ranks():
    # n = 100: ranks 40 and 61 of 1 to 100 (Conover's table: 40 to 61 holds the median with at least 95 %).
    assert median_interval(range(1, 101)) == (40, 61)
    assert median_interval([3.0, 1.0, 2.0]) == (1, 3)


def test_the_interval_holds_the_median_nineteen_times_in_twenty():
    random = np.random.default_rng(0)
    drawn = random.exponential(size=(2000, 200))
    held = [low <= np.log(2) <= high for low, high in map(median_interval, drawn.tolist())]
    assert 0.94 < np.mean(held) < 0.98


def test_measuring_may_stop_where_the_median_is_known_to_two_percent():
    assert LatencyStats.of([1.0] * 50, 0).steady
    wide = LatencyStats.of([1.0, 1.1] * 50, 0)
    assert not wide.steady
    assert not LatencyStats.of([1.0] * 9 + [1.039] * 12, 0).steady  # all of the interval on one side
    assert wide.variation == pytest.approx(wide.std_ms / 1.05)


def test_one_sample_has_no_spread():
    assert LatencyStats.of([2.0], 0).std_ms == 0


def test_feeds_are_seeded_and_fit_their_specs():
    specs = (TensorSpec("image", "UINT8", (None, 4, 4, 3)), TensorSpec("noise", "FP32", (None, 2)))
    one, two, other = random_feeds(specs, 3), random_feeds(specs, 3), random_feeds(specs, 3, seed=1)
    for spec in specs:
        spec.check(one[spec.name])
        np.testing.assert_array_equal(one[spec.name], two[spec.name])
        assert not np.array_equal(one[spec.name], other[spec.name])
    with pytest.raises(TensorError, match="exported for batch 1, 3 was asked for"):
        random_feeds((TensorSpec("image", "UINT8", (1, 4, 4, 3)),), 3)


def test_the_machine_is_named():
    machine = Machine.here()
    assert machine.num_cpus >= 1
    assert machine.processor
    assert machine.onnxruntime in str(machine)
