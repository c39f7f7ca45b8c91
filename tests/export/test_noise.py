"""Noise on the features: in torch, in the exported graph, on the device."""

import math

import numpy as np
import pytest
import torch

from edge_sdk import EdgeRuntime
from edge_sdk.bundle import open_party
from edge_sdk.errors import ConfigError
from export.audit.metrics.fsinfo import Prior, fsinfo, spectrum
from export.calibrate import calibrated_sigma, guarded
from export.data import load_splits
from export.data.splits import Images
from export.defenses import SplitModel, model_config
from export.defenses.fsinfoguard import guarded_weights
from export.defenses.noise import FeatureDropout, GaussianNoise
from export.parity import parity_images
from export.write_bundle import export_bundle

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


def test_gaussian_noise_has_each_shares_own_variance():
    torch.manual_seed(0)
    shares = (torch.zeros(100, 500), torch.ones(100, 4, 5, 5))
    drawn = [torch.randn_like(share) for share in shares]
    first, second = GaussianNoise([0.5, 2.0])(shares, drawn)
    assert first.std().item() == pytest.approx(0.5, rel=0.02)
    assert second.std().item() == pytest.approx(2.0, rel=0.03)
    assert second.mean().item() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_of_the_features(rate):
    torch.manual_seed(0)
    (dropped,) = FeatureDropout(rate)((torch.ones(100, 1000),), [torch.randn(100, 1000)])
    assert (dropped == 0).float().mean().item() == pytest.approx(rate, abs=0.01)


@pytest.mark.parametrize(("defense", "settings"), [("gaussian", {"sigma": 0.7}), ("dropout", {"rate": 0.3})])
def test_the_exported_encoder_takes_its_noise_from_the_device(make_checkpoint, tmp_path, defense, settings):
    checkpoint = make_checkpoint(defense, **settings)
    export_bundle(checkpoint, tmp_path / "b", images=parity_images(None, 32))
    edge = open_party(tmp_path / "b" / "edge")
    sources = {spec.name: spec.source for spec in edge.manifest.parts[0].inputs}
    assert sources == {"image": "data", "noise": "normal"}
    with EdgeRuntime(tmp_path / "b" / "edge") as runtime:
        first, second = (runtime.encode(IMAGES)["features"] for _ in range(2))
    with torch.no_grad():
        (clean,) = checkpoint.build().shares(torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float() / 255)
    difference = first - clean.numpy()
    assert not np.array_equal(first, second)
    if defense == "gaussian":
        assert difference.std() == pytest.approx(0.7, rel=0.02)
        assert abs(np.corrcoef(difference.ravel(), (second - clean.numpy()).ravel())[0, 1]) < 0.05
    else:
        kept = np.isclose(first, clean.numpy(), atol=1e-4)
        assert np.all(kept | (first == 0))
        assert (first[clean.numpy() > 1e-3] == 0).mean() == pytest.approx(0.3, abs=0.03)


class Linear(torch.nn.Module):
    """``z = A x``; as many features as pixels for a closed form."""

    def __init__(self, features, pixels):
        super().__init__()
        self.matrix = torch.randn(features, pixels, generator=torch.Generator().manual_seed(0))

    def forward(self, x):
        return x.flatten(1) @ self.matrix.T


def _pixels():
    random = np.random.default_rng(1)
    return Images(random.integers(0, 256, (400, 2, 2, 3), np.uint8), np.zeros(400, np.int64), "")


def test_without_a_prior_to_speak_of_the_closed_form_holds():
    """As many features as pixels, and so little noise that the prior says nothing beside them."""
    linear, d = Linear(12, 12), 12
    model = SplitModel(linear, [torch.nn.Identity()])
    target = 6.0
    (sigma,) = calibrated_sigma(model, _pixels(), fsinfo_target=target)
    log_det = float(torch.linalg.slogdet(linear.matrix.double().T @ linear.matrix.double())[1])
    closed = math.exp((0.5 * log_det - d / 2 * math.log(2 * math.pi * math.e) - target * d) / d)
    assert sigma == pytest.approx(closed, rel=1e-3)


@pytest.mark.parametrize("asked", [{"fsinfo_target": 0.6}, {"psnr_ceiling": 12.0}])
def test_the_calibrated_noise_meets_its_target(asked):
    model, images = SplitModel(Linear(5, 12), [torch.nn.Identity()]), _pixels()
    (sigma,) = calibrated_sigma(model, images, **asked)
    x = torch.from_numpy(images.pixels).permute(0, 3, 1, 2).float() / 255
    information, _, ceiling = fsinfo([spectrum(model.shares, x[0], Prior.of(x))], sigma)
    found = information.value if "fsinfo_target" in asked else ceiling.value
    assert found == pytest.approx(next(iter(asked.values())), abs=1e-4)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "give one of"),
        ({"fsinfo_target": 1.0, "psnr_ceiling": 14.0}, "give one of"),
        ({"psnr_ceiling": 3.0}, "no noise gives 3 dB here"),
        ({"psnr_ceiling": 90.0}, "no noise gives 90 dB here"),
    ],
)
def test_targets_that_no_noise_meets_are_refused(asked, words):
    with pytest.raises(ConfigError, match=words):
        calibrated_sigma(SplitModel(Linear(5, 12), [torch.nn.Identity()]), _pixels(), **asked)


@pytest.mark.parametrize(
    ("name", "value"),
    [("psnr_ceiling", -5.0), ("psnr_ceiling", 7.0), ("psnr_ceiling", math.nan), ("psnr_ceiling", math.inf),
     ("fsinfo_target", -5.0), ("fsinfo_target", math.nan), ("fsinfo_target", math.inf)],
)  # fmt: skip
def test_what_no_noise_can_give_is_refused_before_the_jacobians(name, value):
    class Untouched(torch.nn.Module):
        def forward(self, x):
            raise AssertionError

    with pytest.raises(ConfigError, match="no noise gives"):
        calibrated_sigma(SplitModel(Untouched(), [torch.nn.Identity()]), _pixels(), **{name: value})


def test_the_prior_is_of_as_many_images_as_are_asked_for():
    """A covariance of fewer images has a smaller determinant; an audit's is of the auxiliary images."""
    model, images = SplitModel(Linear(5, 12), [torch.nn.Identity()]), _pixels()
    all_of_them, few = (calibrated_sigma(model, images, fsinfo_target=0.6, num_prior=n) for n in (400, 20))
    assert all_of_them == calibrated_sigma(model, images, fsinfo_target=0.6)
    assert few != all_of_them


def test_a_base_that_deals_by_a_key_gets_no_noise(make_checkpoint, image_folder):
    base = make_checkpoint("privdfs", keyed=True)
    with pytest.raises(ConfigError, match="privdfs deals by a user's key"):
        guarded(base, load_splits(str(image_folder), 32), fsinfo_target=1.0, psnr_ceiling=None, num_images=1, seed=0)


@pytest.mark.parametrize(("base", "settings"), [("none", {}), ("siftfunnel", {}), ("privdfs", {"num_servers": 2})])
def test_noise_goes_on_top_of_any_defense(make_checkpoint, base, settings):
    checkpoint = make_checkpoint(base, **settings)
    shares = len(checkpoint.feature_ranges)
    own = {k: getattr(checkpoint.config, k) for k in ("num_servers", "image_size") if hasattr(checkpoint.config, k)}
    guarded = make_checkpoint("fsinfoguard", base=base, base_settings=own, sigma=[0.5] * shares)
    model = guarded.build()
    model.load_state_dict(guarded_weights(checkpoint.weights, (0.5,) * shares))
    plain, x = checkpoint.build(), torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        for mine, theirs in zip(model.shares(x), plain.shares(x), strict=True):
            assert torch.equal(mine, theirs)
        noisy = model.features(x)
        assert (noisy[0] - plain.shares(x)[0]).std().item() == pytest.approx(0.5, rel=0.1)
        before = {name: tensor.clone() for name, tensor in model.edge.state_dict().items()}
        model.train()
        model(x)  # batch statistics of the encoder stay as they are
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.edge.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.edge.parameters())
    assert all(parameter.requires_grad for tail in model.tails for parameter in tail.parameters())


@pytest.mark.parametrize(
    ("defense", "settings", "words"),
    [
        ("fsinfoguard", {}, "sigma must be positive for every share"),
        ("fsinfoguard", {"sigma": [0.0]}, "sigma must be positive for every share"),
        ("gaussian", {"sigma": -1}, "sigma must be positive, got -1"),
        ("dropout", {"rate": 1.0}, "rate must be between 0 and 1, got 1.0"),
        ("nopeek", {"alpha": -2}, "alpha must not be negative, got -2"),
    ],
)
def test_impossible_settings_are_refused(defense, settings, words):
    with pytest.raises(ConfigError, match=words):
        model_config(defense, **settings)


def test_calibrated_noise_is_for_the_size_it_was_calibrated_at(make_checkpoint, tmp_path):
    """The base's masks as well, whose places another size would read wrongly without a word."""
    own = {"num_servers": 2, "blocks": 0, "branch_width": 0.1, "image_size": 32}
    guarded = make_checkpoint("fsinfoguard", base="privdfs", base_settings=own, sigma=[0.5, 0.5])
    with pytest.raises(ConfigError, match="for 32x32 images alone; 64x64"):
        export_bundle(guarded, tmp_path / "b", images=parity_images(None, 64), image_size=64)
