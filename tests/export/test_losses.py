"""Every term of the objective against a value worked out by hand."""

import math

import pytest
import torch

from export.defenses.losses import channel_correlation, distance_correlation, feature_l1, smoothed_kl

LABELS = torch.tensor([0, 1])
TARGETS = torch.eye(3)[LABELS]


def test_smoothed_kl_of_uniform_logits_is_log_c_minus_the_entropy():
    # KL(p || uniform) = log C - H(p); p = (0.75, 0.125, 0.125)
    entropy = -(0.75 * math.log(0.75) + 2 * 0.125 * math.log(0.125))
    found = smoothed_kl(torch.zeros(2, 3), TARGETS, 0.25)
    assert found.item() == pytest.approx(math.log(3) - entropy, rel=1e-6)


def test_smoothed_kl_is_zero_at_the_smoothed_labels():
    p = torch.tensor([[0.75, 0.125, 0.125], [0.125, 0.75, 0.125]])
    assert smoothed_kl(p.log(), TARGETS, 0.25).item() == pytest.approx(0, abs=1e-6)


def test_a_mixed_target_is_smoothed_by_its_parts():
    mixed = 0.25 * TARGETS[:1] + 0.75 * TARGETS[1:]
    p = 0.25 * torch.tensor([[0.75, 0.125, 0.125]]) + 0.75 * torch.tensor([[0.125, 0.75, 0.125]])
    assert smoothed_kl(p.log(), mixed, 0.25).item() == pytest.approx(0, abs=1e-6)


def test_without_smoothing_it_is_cross_entropy():
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.cross_entropy(logits, LABELS)
    torch.testing.assert_close(smoothed_kl(logits, TARGETS, 0.0), expected)


def test_distance_correlation_of_an_affine_image_is_one():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
    assert distance_correlation(x, -2.5 * x @ rotation + 7).item() == pytest.approx(1, abs=1e-4)


def test_distance_correlation_of_three_points_by_hand():
    # x = (0, 1, 2): centred distances [[-2, 2, 1]...]/... computed exactly below; z = (0, 0, 1).
    x, z = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [0.0], [1.0]])
    # a = |xi - xj| centred: row means (1, 2/3, 1), grand mean 8/9; b likewise: row means (1/3, 1/3, 2/3), mean 4/9.
    a = torch.tensor([[-10 / 9, 2 / 9, 8 / 9], [2 / 9, -4 / 9, 2 / 9], [8 / 9, 2 / 9, -10 / 9]])
    b = torch.tensor([[-2 / 9, -2 / 9, 4 / 9], [-2 / 9, -2 / 9, 4 / 9], [4 / 9, 4 / 9, -8 / 9]])
    expected = ((a * b).mean() / ((a * a).mean() * (b * b).mean()).sqrt()).sqrt()
    assert distance_correlation(x, z).item() == pytest.approx(expected.item(), abs=1e-4)


def test_distance_correlation_sees_dependence_that_pearson_does_not():
    x = torch.linspace(-1, 1, 201)[:, None]
    z = x.square()
    pearson = torch.corrcoef(torch.cat((x, z), 1).T)[0, 1]
    assert abs(pearson.item()) < 1e-5
    assert distance_correlation(x, z).item() > 0.4
    unrelated = torch.rand(201, 1, generator=torch.Generator().manual_seed(0))
    assert distance_correlation(x, unrelated).item() < 0.15


def test_distance_correlation_of_a_constant_is_zero_and_has_gradients():
    z = torch.zeros(4, 2, requires_grad=True)
    value = distance_correlation(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), z)
    value.backward()
    assert value.item() < 1e-3
    assert torch.isfinite(z.grad).all()


def test_channel_correlation_by_hand():
    first = torch.tensor([1.0, -1.0, 1.0, -1.0])
    orthogonal = torch.tensor([1.0, 1.0, -1.0, -1.0])
    half = first + math.sqrt(3) * orthogonal  # Pearson correlation 1/2 with the first
    for second, expected in ((first, 1.0), (-3 * first + 5, 1.0), (orthogonal, 0.0), (half, 0.25)):
        z = torch.stack((first, second)).view(1, 2, 2, 2)
        assert channel_correlation(z).item() == pytest.approx(expected, abs=1e-6)


def test_channel_correlation_averages_over_pairs_and_images():
    a, b = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    same = torch.stack((a, a, b))  # one of three pairs correlates fully
    none = torch.stack((a, b, torch.tensor([1.0, -1.0, -1.0, 1.0])))
    z = torch.stack((same, none)).view(2, 3, 2, 2)
    assert channel_correlation(z).item() == pytest.approx(1 / 6, abs=1e-6)


def test_a_constant_channel_counts_as_uncorrelated_and_has_gradients():
    z = torch.zeros(1, 2, 2, 2, requires_grad=True)
    value = channel_correlation(z)
    value.backward()
    assert value.item() == 0
    assert torch.isfinite(z.grad).all()


def test_feature_l1():
    assert feature_l1(torch.tensor([[1.0, -3.0], [0.0, 4.0]])).item() == 2
