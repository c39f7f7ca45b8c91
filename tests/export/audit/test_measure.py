"""What the metrics of a view are measured with."""

from dataclasses import replace

import pytest
import torch

from export.audit.budget import Budget
from export.audit.images import AuditImages
from export.audit.measure import ASSUMED_NOISE, Measurements
from export.audit.metrics.fsinfo import fsinfo, spectrum
from export.audit.scale import typical
from export.audit.target import Target
from export.calibrate import calibrated_sigma
from export.data import load_splits
from export.defenses import ModelConfig, model_config
from export.defenses.fsinfoguard import guarded_weights

SIZE = 16
MEANS = Budget({}, num_metric_images=60, num_jacobians=3)


@pytest.fixture(scope="module")
def splits(image_folder):
    return load_splits(str(image_folder), SIZE)


def _fsinfo(checkpoint, splits, servers=(0,), seed=0):
    measured = Measurements(Target(checkpoint).view(servers), AuditImages.of(splits), MEANS, seed)
    return measured.metric("fsinfo", lambda done, total: None)


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_noise_that_is_sent_is_what_fsinfo_is_of(make_checkpoint, splits, sigma):
    checkpoint = make_checkpoint("gaussian", size=SIZE, sigma=sigma)
    images = AuditImages.of(splits)
    order = torch.randperm(len(images.auxiliary), generator=torch.Generator().manual_seed(0))[:3]
    model = checkpoint.build()
    spectra = [spectrum(model.shares, images.auxiliary[i].float() / 255, images.prior) for i in order]
    expected = fsinfo(spectra, sigma)
    found = _fsinfo(checkpoint, splits)
    assert [metric.name for metric in found] == ["FSInfo", "average-case error bound", "PSNR ceiling"]
    assert [metric.value for metric in found] == pytest.approx([metric.value for metric in expected])
    assert all(metric.assumed_noise is None and metric.std_error > 0 for metric in found)


@pytest.mark.parametrize("base", ["none", "privdfs"])
def test_calibrated_noise_is_measured_at_its_target(make_checkpoint, splits, base):
    """On the same images and prior; with several servers, each share by itself."""
    settings = {"image_size": SIZE} if base == "privdfs" else {}
    plain = make_checkpoint(base, size=SIZE, **settings)
    servers = range(len(plain.build().tails))
    target = min(_fsinfo(plain, splits, (k,))[0].value for k in servers) - 0.3
    sigma = calibrated_sigma(plain.build(), splits.auxiliary, fsinfo_target=target, num_images=MEANS.num_jacobians)
    own = {name: value for name, value in plain.settings.items() if name not in ModelConfig.__dataclass_fields__}
    config = model_config("fsinfoguard", base=base, base_settings=own, sigma=sigma)
    guarded = replace(plain, defense="fsinfoguard", config=config, weights=guarded_weights(plain.weights, sigma))
    for k in servers:
        assert _fsinfo(guarded, splits, (k,))[0].value == pytest.approx(target, abs=1e-3)


def test_assumed_noise_knows_no_scale_and_no_outlier(make_checkpoint, splits):
    checkpoint = make_checkpoint("none", size=SIZE, split=1)
    (plain,) = _fsinfo(checkpoint, splits)
    assert plain.assumed_noise == ASSUMED_NOISE
    assert plain.title == "FSInfo, noise of 1% assumed"

    def scaled():
        """The last layer of the encoder with its channels larger; the activation behind it keeps ratios."""
        weights = dict(checkpoint.weights)
        norm = [name for name in weights if name.startswith("edge.") and name.endswith("running_var")][-1]
        stem = norm.removesuffix("running_var")
        factors = torch.rand(len(weights[norm]), generator=torch.Generator().manual_seed(0)) * 9 + 1
        for name in ("weight", "bias"):
            weights[stem + name] = weights[stem + name] * factors
        return replace(checkpoint, weights=weights)

    (found,) = _fsinfo(scaled(), splits)
    assert found.value == pytest.approx(plain.value, rel=1e-3)


def _deviation(z):
    return typical(z)[1]


def test_the_typical_deviation_is_of_what_varies():
    torch.manual_seed(0)
    z = torch.randn(500, 3, 4, 4)
    middle, usual = typical(z + 7)
    assert torch.allclose(middle, torch.tensor(7.0), atol=0.05)
    assert usual.shape == (3, 1, 1)
    assert torch.allclose(usual, torch.tensor(0.6745), atol=0.03)  # a normal number's median magnitude
    assert torch.allclose(_deviation(z * 5 + 100), usual * 5, rtol=1e-3)
    far = z.where(torch.rand(z.shape) > 0.01, z * 1000)
    assert torch.allclose(_deviation(far), usual, rtol=0.05)
    mostly_zero = z.relu() * (torch.rand(z.shape) < 0.3)
    assert torch.allclose(_deviation(mostly_zero), usual, rtol=0.15)
    assert torch.equal(_deviation(torch.zeros(5, 7)), torch.ones(7))
    assert torch.equal(typical(torch.full((5, 7), 3.0))[0], torch.full((7,), 3.0))
    placed = torch.cat((z, torch.zeros(500, 3, 4, 4)), 2)  # among places where nothing is sent
    assert torch.equal(_deviation(placed), _deviation(z))


def test_features_that_are_dropped_tell_nothing(make_checkpoint, splits):
    plain = _fsinfo(make_checkpoint("none", size=SIZE), splits)[0].value
    half, most = (_fsinfo(make_checkpoint("dropout", size=SIZE, rate=r), splits)[0].value for r in (0.5, 0.97))
    assert most < half < plain
    again = make_checkpoint("dropout", size=SIZE, rate=0.5)
    assert _fsinfo(again, splits)[0].value == half
    assert _fsinfo(again, splits, seed=1)[0].value != half
