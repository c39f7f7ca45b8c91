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


def test_a_feature_rests_at_any_value():
    """A normalisation behind the ReLU, or a uint8 wire whose steps miss zero, says no more of the image."""
    torch.manual_seed(0)
    z = torch.randn(200, 6, 4, 4).relu() + torch.tensor([0.0, 0, 0, 1, 2, 3]).view(6, 1, 1)
    z[:, 5] = 7  # says nothing at all
    expected = (z[:, :5] != z[:, :5].amin((0, 2, 3), keepdim=True)).flatten(1).sum(1).float().mean()
    assert effective_information(z).value == pytest.approx(float(expected))
    steps = ((z + 0.3) / 0.04).round() * 0.04 - 0.3
    assert effective_information(steps).value == pytest.approx(float(expected), rel=0.05)  # what was near its rest


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
