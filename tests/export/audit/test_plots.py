import pytest

from export.audit.plots import Point, fsinfo_against_psnr, ranks, spearman


def test_spearman_is_of_ranks():
    assert spearman([(1, 10), (2, 20), (3, 1000)]) == pytest.approx(1)
    assert spearman([(1, 3), (2, 2), (3, 1)]) == pytest.approx(-1)
    assert spearman([(1, 1), (2, 3), (3, 2), (4, 4)]) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert spearman([(1, 1), (1, 2), (2, 3)]) == pytest.approx(0.75**0.5)  # a tie shares its rank
    assert spearman([(1, 1), (2, 2)]) is None
    assert spearman([(1, 1), (1, 2), (1, 3)]) is None


def test_noise_that_is_added_and_noise_that_is_assumed_are_ranked_apart():
    added = [Point("a", 2.5, 14.0, False, 32), Point("b", 2.6, 20.0, False, 32), Point("c", 2.7, 24.0, False, 32)]
    assumed = [Point("d", 2.9, 13.0, True, 32), Point("e", 4.0, 21.0, True, 32), Point("f", 6.0, 19.0, True, 32)]
    found = ranks([*added, *assumed])
    assert (found.added, found.assumed) == (pytest.approx(1), pytest.approx(0.5))
    assert found.of_all == pytest.approx(1 - 6 * 32 / 210)  # PSNR's ranks 2, 4, 6 and 1, 5, 3
    assert ranks(added).assumed is None


def test_the_same_points_give_the_same_picture():
    points = [Point("a", 0.1, 14.0, False, 32), Point("b", 0.5, 20.0, True, 32)]
    first = fsinfo_against_psnr(points)
    assert first == fsinfo_against_psnr(points)
    assert first.startswith("<svg")
    assert "nats a dimension" in first
