"""Trainings that start from a trained model."""

from dataclasses import replace

import pytest
import torch

from edge_sdk.errors import ConfigError, DataError
from export.base_model import start_from
from export.checkpoint import build_defense
from export.data import load_splits
from export.defenses import model_config

SIZE = 16


@pytest.fixture(scope="module")
def splits(image_folder):
    return load_splits(str(image_folder), SIZE)


@pytest.fixture(scope="module")
def base(make_checkpoint, splits):
    return replace(make_checkpoint("none", size=SIZE, split=1, label_smoothing=0.2), data=splits.record())


@pytest.mark.parametrize(("defense", "own"), [("nopeek", {"alpha": 3.0}), ("gaussian", {"sigma": 0.5}), ("none", {})])
def test_it_starts_from_the_bases_weights_and_settings(base, splits, defense, own):
    settings, weights = start_from(base, defense, own, splits)
    assert settings == {**settings, "split": 1, "label_smoothing": 0.2, **own}
    model = build_defense(defense, model_config(defense, **settings))
    model.load_state_dict(weights)
    images = torch.rand(4, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().shares(images), base.build().eval().shares(images))
    if model.noise is not None:
        assert model.noise.sigma.tolist() == [0.5]


def test_chosen_settings_go_before_the_bases(base, splits):
    assert start_from(base, "none", {"label_smoothing": 0.0}, splits)[0]["label_smoothing"] == 0


def test_calibrated_noise_goes_on_it(make_checkpoint, splits):
    own = {"beta": 1.0, "blocks": 1, "standardize": True, "bounded": True, "funnel_pool": True}
    base = replace(make_checkpoint("siftfunnel", size=SIZE, **own), data=splits.record())
    settings, weights = start_from(base, "fsinfoguard", {}, splits, psnr_ceiling=15.0, num_images=2)
    assert settings["base"] == "siftfunnel"
    assert own.items() <= settings["base_settings"].items()
    model = build_defense("fsinfoguard", model_config("fsinfoguard", **settings))
    model.load_state_dict(weights)
    images = torch.rand(4, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().shares(images), base.build().eval().shares(images))
    assert weights["noise.sigma"].tolist() == pytest.approx(settings["sigma"])


@pytest.mark.parametrize(
    ("defense", "settings", "targets", "words"),
    [
        ("privdfs", {}, {}, "the weights of none do not fit privdfs: .* is in one alone"),
        ("none", {"split": 2}, {}, "do not fit none"),
        ("nopeek", {"num_classes": 7}, {}, r"with these settings: tails.* is \[10, 256\] there, \[7, 256\] here"),
        ("nopeek", {}, {"fsinfo_target": 1.0}, "nopeek has none that is calibrated"),
        ("fsinfoguard", {}, {}, "one of"),
        ("nopeek", {"beta": 1}, {}, "nopeek has no setting beta"),
    ],
)
def test_what_does_not_go_together_is_refused(base, splits, defense, settings, targets, words):
    with pytest.raises(ConfigError, match=words):
        start_from(base, defense, settings, splits, **targets)


def test_images_of_another_split_are_refused(base, image_folder):
    with pytest.raises(DataError, match="not the parts that the base was trained on"):
        start_from(base, "nopeek", {}, load_splits(str(image_folder), SIZE, seed=1))
