import math

import pytest
import torch

from export.audit.metrics.distance_correlation import distance_correlation


def test_of_independent_variables_is_zero_in_any_dimension():
    draw = torch.Generator().manual_seed(2)
    x, z = torch.randn(4000, 3, 8, 8, generator=draw), torch.randn(4000, 50, generator=draw)
    found = distance_correlation(x, z)
    assert abs(found.value) < 3 * found.std_error
    assert found.num_samples == 4000


def test_of_a_variable_and_itself_moved_and_scaled_is_one():
    x = torch.randn(500, 3, 4, 4)
    assert distance_correlation(x, 3 - 2 * x).value == pytest.approx(1)


@pytest.mark.parametrize("r", [0.3, 0.7, 0.95])
def test_of_a_bivariate_normal_is_the_closed_form(r):
    """Székely, Rizzo and Bakirov, Annals of Statistics 35 (2007), theorem 7."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(10_000, 1, generator=draw)
    z = r * x + math.sqrt(1 - r * r) * torch.randn(10_000, 1, generator=draw)
    truth = r * math.asin(r) + math.sqrt(1 - r * r) - r * math.asin(r / 2) - math.sqrt(4 - r * r) + 1
    found = distance_correlation(x, z)
    assert found.value == pytest.approx(truth / (1 + math.pi / 3 - math.sqrt(3)), abs=4 * found.std_error)


def test_a_dependence_that_no_correlation_shows_is_found():
    x = torch.randn(2000, 1)
    found = distance_correlation(x, x.square())
    assert found.value > 10 * found.std_error


def test_constant_features_depend_on_nothing():
    assert distance_correlation(torch.randn(250, 4), torch.ones(250, 3)).value == 0
