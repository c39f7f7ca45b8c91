"""Every attack rebuilds what there is to rebuild, and nothing where there is nothing: a broken one fails here."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from edge_sdk.errors import DataError
from export.audit.attacks import likelihood
from export.audit.attacks.blind import BlindAttack
from export.audit.attacks.diffusion import DiffusionAttack
from export.audit.attacks.fitting import fit_network
from export.audit.attacks.inversion import InversionAttack
from export.audit.attacks.joined import JoinedFeatures, Standardize, feature_grid
from export.audit.attacks.likelihood import LikelihoodAttack
from export.audit.quality import psnr


class Seen:
    """A view that is one function of the image, without noise."""

    device, noise, drops = torch.device("cpu"), None, False

    def __init__(self, *functions):
        self.features = lambda images: tuple(function(images) for function in functions)
        self.observe = lambda images: tuple(z.detach() for z in self.features(images))


WHOLE = Seen(lambda x: x)
THUMBNAIL = Seen(lambda x: functional.avg_pool2d(x, 4))
HALVES = Seen(lambda x: x[:, :, :8].flatten(1), lambda x: x[:, :, 8:].flatten(1))
NOTHING = Seen(lambda x: x.flatten(1)[:, :4] * 0)
ATTACKS = {
    "residual": InversionAttack(width=32, epochs=4, batch_size=32),
    "transposed": InversionAttack(decoder="transposed", width=32, epochs=4, batch_size=32),
    "likelihood": LikelihoodAttack(steps=60, restarts=1),
    "diffusion": DiffusionAttack(
        width=16,
        condition=16,
        epochs=6,
        batch_size=32,
        sampling_steps=5,
        decoder=InversionAttack(width=16, epochs=2, batch_size=32),
    ),
}


def _reached(attack, view, patches, count=40):
    own, other = patches[:1000], patches[1000 : 1000 + count].float() / 255
    rebuild = attack.fit(view, own, None, lambda done, total: None)
    rebuilt = rebuild(view.observe(other))
    assert rebuilt.shape == other.shape
    assert 0 <= rebuilt.min() <= rebuilt.max() <= 1
    return psnr(other, rebuilt).mean().item()


@pytest.fixture(scope="module")
def floor(patches):
    return _reached(BlindAttack(), WHOLE, patches)


@pytest.mark.parametrize(("name", "above"), [("residual", 10), ("transposed", 6), ("likelihood", 20)])
def test_the_image_itself_is_rebuilt(name, above, patches, floor):
    assert _reached(ATTACKS[name], WHOLE, patches) > floor + above


def test_diffusion_listens_to_the_features(patches):
    """Trained for so short a time it is no strong attack yet, but what it samples is of the image that was seen."""
    attack = replace(ATTACKS["diffusion"], epochs=8, sampling_steps=8, learning_rate=3e-3)
    seen, unseen = (_reached(attack, view, patches) for view in (WHOLE, NOTHING))
    assert seen > unseen + 2  # 4.3 to 4.5 by three seeds


@pytest.mark.slow
def test_diffusion_rebuilds_the_image_itself(patches, floor):
    attack = DiffusionAttack(width=32, condition=32, epochs=60, batch_size=32)
    assert _reached(attack, WHOLE, patches) > floor + 8


@pytest.mark.parametrize(
    ("name", "above"), [("residual", 4), pytest.param("transposed", 3, marks=pytest.mark.slow), ("likelihood", 4)]
)
def test_a_thumbnail_gives_more_than_nothing_and_less_than_the_image(name, above, patches, floor):
    reached = _reached(ATTACKS[name], THUMBNAIL, patches)
    assert floor + above < reached < floor + 15


def test_rare_large_values_do_not_blind_the_attacker(patches):
    """A funnel has features far from all others: here a hundredth of the entries grows a thousand times."""

    def rare(z):
        return torch.where(torch.rand(z.shape) < 0.01, z * 1000, z)

    plain = _reached(ATTACKS["residual"], THUMBNAIL, patches)
    loud = _reached(ATTACKS["residual"], Seen(lambda x: rare(functional.avg_pool2d(x, 4))), patches)
    assert loud > plain - 1.5


@pytest.mark.parametrize("name", ["residual", "likelihood"])
def test_a_constant_does_not_blind_the_attacker(name, patches):
    plain = _reached(ATTACKS[name], THUMBNAIL, patches, 8)
    assert _reached(ATTACKS[name], Seen(lambda x: functional.avg_pool2d(x, 4) + 1000), patches, 8) > plain - 0.5


@pytest.mark.parametrize("units", [(torch.ones(()), torch.ones(())), (torch.tensor(2.0), torch.rand(3, 1, 1))])
def test_units_are_such_that_images_lie_one_from_their_mean(units):
    known = (torch.randn(400, 5) + 7, 3 * torch.randn(400, 3, 2, 2))
    apart = [(z - z.mean(0)) / unit for z, unit in zip(known, likelihood._to_one(units, known), strict=True)]
    assert sum(z.square().flatten(1).sum(1).mean() for z in apart) == pytest.approx(1, rel=1e-5)


def test_what_is_searched_in_vain_is_no_worse_than_the_mean_image(patches, floor):
    """Of features that tell little the search finds something with these features that is further from the original."""
    little = Seen(lambda x: functional.avg_pool2d(x, 16).mean(1, keepdim=True).flatten(1) * 0.01)
    little.observe = lambda images: tuple(z + 0.01 * torch.randn(z.shape) for z in little.features(images))
    assert _reached(ATTACKS["likelihood"], little, patches) > floor - 0.2


def test_places_that_are_always_alike_do_not_count_for_a_channels_scale():
    torch.manual_seed(0)
    sent = torch.rand(64, 4, 8, 8) + 1
    placed = torch.cat((sent, torch.zeros(64, 4, 24, 8)), 2)
    whole, part = Standardize(sent), Standardize(placed)
    assert torch.allclose(part(placed)[:, :, :8], whole(sent), atol=1e-5)
    assert not part(placed)[:, :, 8:].any()
    assert part(placed + 0.1)[:, :, 8:].all()  # alike in the sample only: what it tells is not lost
    assert torch.isfinite(Standardize(torch.full((8, 2, 3), 5.0))(torch.full((1, 2, 3), 5.0))).all()


def test_a_loud_channel_does_not_drown_the_others(patches):
    """What is searched is measured in each channel's own scale."""

    def loud(x):
        small = functional.avg_pool2d(x, 4)
        return torch.cat((1000 * small.mean((1, 2, 3), keepdim=True).expand(-1, 1, 4, 4), small), 1)

    plain = _reached(ATTACKS["likelihood"], THUMBNAIL, patches, 8)
    assert _reached(ATTACKS["likelihood"], Seen(loud), patches, 8) > plain - 1


def test_the_units_that_do_best_are_taken(patches, monkeypatch):
    colours, one = (torch.ones(()),), (torch.tensor([1.0, 1e6, 1e6]).view(3, 1, 1),)

    def reached(*units):
        monkeypatch.setattr(likelihood, "_units", lambda view, images: units)
        return _reached(ATTACKS["likelihood"], THUMBNAIL, patches, 8)

    good, bad, both = reached(colours), reached(one), reached(one, colours)
    assert bad < good - 1
    assert both == good


def test_features_without_noise_count_as_they_are_or_in_their_channels_scale(patches):
    known = (patches[:200] / 255 * torch.tensor([1.0, 10, 100]).view(3, 1, 1),)
    channels, plain = likelihood._units(WHOLE, known)
    assert channels[0].shape == (3, 1, 1)
    assert channels[0][2] > 20 * channels[0][0]
    assert plain[0] == 1


@pytest.mark.parametrize("optimizer", likelihood.OPTIMIZERS)
def test_each_optimizer_finds_the_image(optimizer, patches, floor, monkeypatch):
    monkeypatch.setattr(likelihood, "OPTIMIZERS", (optimizer,))
    assert _reached(ATTACKS["likelihood"], WHOLE, patches, 8) > floor + 15


def test_of_several_starts_the_best_end_is_kept(patches, monkeypatch):
    """Image by image: here each start is the answer for some."""
    own, other = patches[:1000], patches[1000:1008].float() / 255
    attack = LikelihoodAttack(steps=1, restarts=3)
    mean, *random = attack._starts(own.float().mean(0) / 255, 8, 3)
    assert torch.allclose(mean, own.float().mean(0) / 255)
    assert all(0 < start.std() < 1 for start in random)
    assert not torch.equal(*random)
    answers = [torch.where((torch.arange(8) % 3 == k)[:, None, None, None], other, mean) for k in range(3)]
    monkeypatch.setattr(LikelihoodAttack, "_starts", lambda self, mean, count, restarts: answers[:restarts])
    rebuilt = attack._search(WHOLE, (torch.tensor(1.0),), (other,), own[0] / 255, 1e-3, 3)
    assert torch.equal(rebuilt, other)


class Dropping(Seen):
    """Of the image itself, half of the pixels are set to zero at random."""

    def __init__(self, *, drops):
        super().__init__(lambda x: x)
        self.drops = drops
        self.observe = lambda images: ((images + 1e-3) * (torch.rand(images.shape) < 0.5),)


def test_what_was_dropped_is_not_taken_for_black(patches):
    """A drop is no zero of the image: total variation fills it in."""
    known, mistaken = (_reached(ATTACKS["likelihood"], Dropping(drops=drops), patches, 8) for drops in (True, False))
    assert known > mistaken + 4


def test_a_loud_share_does_not_drown_a_quiet_one(patches):
    """Two copies of the image, one under much noise: who knows how much rebuilds by the other."""
    view = Seen(lambda x: x, lambda x: x)
    view.observe = lambda images: tuple(images + s * torch.randn(images.shape) for s in (0.01, 3.0))
    view.noise = (0.01, 3.0)
    knows = _reached(ATTACKS["likelihood"], view, patches, 8)
    view.noise = None
    assert knows > _reached(ATTACKS["likelihood"], view, patches, 8) + 3


def test_an_attackers_entry_tells_loud_features_from_quiet_ones():
    torch.manual_seed(0)
    z = torch.rand(64, 4, 8, 8)
    joined = JoinedFeatures((z,), (8, 8), 16)
    with torch.no_grad():
        for bias in (m.bias for m in joined.modules() if isinstance(m, torch.nn.Conv2d)):
            bias.normal_()  # as it may be learned
        loud, quiet = joined((z[:1] * 3,)), joined((z[:1] / 3,))
    assert (loud - quiet).abs().mean() > 0.05 * loud.abs().mean()


def test_tokens_are_taken_as_maps():
    tokens = torch.rand(32, 64, 24)
    assert feature_grid([tokens.shape[1:]], (32, 32)) == (8, 8)
    joined = JoinedFeatures((tokens,), (8, 8), 16)
    assert joined((tokens[:2],)).shape == (2, 16, 8, 8)
    assert sum(p.numel() for p in joined.parameters()) < 10_000  # a convolution over 24 channels


def test_an_attacker_that_diverges_is_no_measure(patches):
    network = torch.nn.Linear(1, 1)
    with pytest.raises(DataError, match="diverged in epoch 1"):
        fit_network(
            network, lambda batch: network(torch.full((1, 1), torch.nan)).sum(), patches[:8], epochs=2, batch_size=4,
            learning_rate=0.1, seed=0, state=None, progress=lambda done, total: None,
        )  # fmt: skip


def test_several_shares_are_put_together(patches, floor):
    attack = ATTACKS["residual"]
    one = _reached(attack, Seen(lambda x: x[:, :, :8].flatten(1)), patches)
    assert floor + 1 < one < _reached(attack, HALVES, patches)


@pytest.mark.parametrize("name", [pytest.param("residual", marks=pytest.mark.slow), "transposed"])
def test_features_without_the_image_give_no_more_than_the_floor(name, patches, floor):
    assert _reached(ATTACKS[name], NOTHING, patches) < floor + 0.5


def test_the_floor_is_the_mean_image(patches):
    rebuild = BlindAttack().fit(WHOLE, patches[:100], None, lambda done, total: None)
    rebuilt = rebuild(WHOLE.observe(patches[:3].float()))
    assert torch.allclose(rebuilt[2], patches[:100].float().mean(0) / 255)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("name", ["residual", "diffusion"])
def test_a_stopped_attack_continues_to_the_same_weights(name, patches, tmp_path):
    attack, own = ATTACKS[name], patches[:96]
    first = 3 * attack.decoder.epochs if name == "diffusion" else 0  # steps of what it begins with
    calls = []

    def stop(done, total):
        calls.append(done)
        assert total == (first if len(calls) <= first else 3 * attack.epochs)
        if len(calls) == first + 5:  # in the second epoch
            raise Stopped

    with pytest.raises(Stopped):
        attack.fit(THUMBNAIL, own, tmp_path / "state", stop)
    calls = []
    resumed = attack.fit(THUMBNAIL, own, tmp_path / "state", lambda done, total: calls.append(done))
    assert calls[0] == 4  # the first epoch was kept
    whole = attack.fit(THUMBNAIL, own, None, lambda done, total: None)
    seen = THUMBNAIL.observe(patches[1000:1004].float() / 255)
    assert torch.equal(resumed(seen), whole(seen))


def test_a_foreign_or_broken_state_is_refused(patches, tmp_path):
    attack = ATTACKS["residual"]
    attack.fit(THUMBNAIL, patches[:64], tmp_path / "state", lambda done, total: None)
    with pytest.raises(DataError, match="another attack"):
        attack.fit(HALVES, patches[:64], tmp_path / "state", lambda done, total: None)
    (tmp_path / "state").write_bytes(b"no")
    with pytest.raises(DataError, match="damaged"):
        attack.fit(THUMBNAIL, patches[:64], tmp_path / "state", lambda done, total: None)
