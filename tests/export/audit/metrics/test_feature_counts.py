import pytest
import torch

from export.audit.metrics.effective_information import effective_information
from export.audit.metrics.entropy import feature_entropy


def test_effective_information_counts_non_zero_features():
    z = torch.zeros(4, 2, 3)
    z[0, 0] = 1
    z[1, 1, 2] = -2
    found = effective_information(z)
    assert found.value == 1  # (3 + 1 + 0 + 0) / 4
    assert found.std_error == pytest.approx(2**0.5 / 2)


def test_the_entropy_of_fair_coins_is_a_bit_each():
    coins = torch.randint(2, (40_000, 7)).float()
    found = feature_entropy(coins)
    assert found.value == pytest.approx(7, rel=0.015)  # the coder's half counts cost a little


def test_the_entropy_of_uniform_steps_is_eight_bits():
    assert feature_entropy(torch.rand(40_000, 3)).value == pytest.approx(24, rel=0.01)


def test_constant_features_have_no_entropy():
    assert feature_entropy(torch.full((100, 5), 3.0)).value == 0


def test_rare_values_take_less_than_fair_ones():
    rare = (torch.rand(20_000, 7) < 0.02).float()
    assert feature_entropy(rare).value < 0.25 * 7
