import math

import pytest
import torch

from edge_sdk.errors import DataError
from export.audit.metrics.mutual_information import mine


def _gaussian(correlation, n=12_000, d=5):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=draw)
    return x, correlation * x + math.sqrt(1 - correlation**2) * torch.randn(n, d, generator=draw)


@pytest.mark.parametrize("correlation", [pytest.param(0.6, marks=pytest.mark.slow), 0.8])
def test_of_correlated_gaussians_is_near_the_closed_form(correlation):
    x, z = _gaussian(correlation)
    truth = -5 / 2 * math.log(1 - correlation**2)
    found = mine(x, z, epochs=30, learning_rate=2e-3)
    assert found.value == pytest.approx(truth, rel=0.10)
    assert found.unit == "nats"


def test_of_independent_variables_is_near_zero():
    x, z = _gaussian(0.0, n=4000)
    assert mine(x, z, epochs=5).value < 0.05


def test_one_rare_feature_does_not_drown_the_others():
    x, z = _gaussian(0.95, n=4000)
    rare = torch.zeros(len(z), 1)
    rare[torch.randperm(len(z), generator=torch.Generator().manual_seed(0))[:2]] = 1.0
    plain, beside = (mine(x, each, epochs=10, learning_rate=2e-3) for each in (z, torch.cat((z, rare), 1)))
    assert beside.value > 0.8 * plain.value > 1
    assert beside.std_error < 0.3


def test_the_seed_decides():
    x, z = _gaussian(0.8, n=2000)
    assert mine(x, z, epochs=1, seed=3) == mine(x, z, epochs=1, seed=3)
    assert mine(x, z, epochs=1, seed=3).value != mine(x, z, epochs=1, seed=4).value


@pytest.mark.parametrize("count", [10, 17, 34])
def test_few_images_give_a_value_and_fewer_are_refused(count):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    found = mine(x, x, epochs=2)
    assert math.isfinite(found.value)
    assert found.std_error is not None
    with pytest.raises(DataError, match="at least 10 images, got 9"):
        mine(x[:9], x[:9])
