"""Shares of a masked model: in training, in inference, exported, keyed, and with answers missing."""

import hashlib

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.bundle import open_party
from edge_sdk.errors import ConfigError
from export.checkpoint import build_defense
from export.defenses import Batch, defense_class, model_config
from export.defenses.privdfs import Fusion, ShareMasks
from export.models import BACKBONES
from export.models.resnet18 import BasicBlock
from export.parity import parity_images
from export.recipes import recipe_config
from export.write_bundle import export_bundle

SHAPE = torch.Size((8, 4, 4))


def _batch(n=8, size=32):
    random = torch.Generator().manual_seed(0)
    images, labels = torch.rand(n, 3, size, size, generator=random), torch.randint(10, (n,), generator=random)
    return Batch(images, labels, torch.eye(10)[labels])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_splits_into_shares_and_learns(backbone):
    config = model_config(
        "privdfs", backbone=backbone, num_servers=3, branch_width=0.25, image_size=16, adversarial=1.0
    )
    defense = defense_class("privdfs")(config)
    model = defense.build()
    objective = defense.loss(model, _batch(size=16))
    assert set(objective.terms) == {"cross_entropy", "branches", "sparsity", "overlap", "adversary"}
    objective.total.backward()
    parameters = [*model.named_parameters(), *defense.adversaries.named_parameters()]
    assert [name for name, p in parameters if p.grad is None or not p.grad.isfinite().all()] == []
    with torch.no_grad():
        assert model.eval()(_batch(size=16).images).shape == (8, 10)


def test_brightness_and_contrast_of_an_image_do_not_leave_the_device():
    torch.manual_seed(0)
    images = _batch().images
    changed = images * 0.5 + torch.rand(8, 1, 1, 1) / 2
    for standardize in (True, False):
        model = build_defense("privdfs", model_config("privdfs", standardize=standardize)).eval()
        with torch.no_grad():
            shares, others = model.features(images), model.features(changed)
        same = [torch.allclose(a, b, atol=1e-2) for a, b in zip(shares, others, strict=True)]
        assert same == [standardize] * 4


@pytest.mark.parametrize(("blocks", "size", "side"), [(0, 32, 8), (1, 32, 4), (3, 32, 4), (3, 16, 4), (2, 64, 8)])
def test_residual_blocks_deepen_the_encoder_and_halve_where_there_is_room(blocks, size, side):
    model = build_defense("privdfs", model_config("privdfs", blocks=blocks, image_size=size))
    assert sum(isinstance(module, BasicBlock) for module in model.edge.modules()) == blocks
    assert model.edge[1].logits.shape == (4, 128, side, side)


def test_masks_start_disjoint_at_the_stated_density():
    masks = ShareMasks(4, SHAPE, 0.1)
    assert [len(kept) for kept in masks.kept] == [12] * 4  # of 128 features
    assert len(set(torch.cat(masks.kept).tolist())) == 48


def test_what_travels_is_what_the_mask_keeps_in_order():
    masks = ShareMasks(2, SHAPE, 0.2).eval()
    z = torch.arange(256.0).view(2, *SHAPE)
    for share, logits in zip(masks(z), masks.logits, strict=True):
        assert torch.equal(share, z[:, logits > 0])


def test_training_and_inference_give_one_answer():
    """Whole tensors with zeros in training, flat vectors and scatter indices in inference."""
    torch.manual_seed(0)
    config = model_config("privdfs", num_servers=2, density=0.3, share_dropout=0.0)
    model = build_defense("privdfs", config)
    images = _batch().images
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        whole = model(images)
        flat = model.eval()(images)
    torch.testing.assert_close(whole, flat, atol=1e-5, rtol=1e-5)


def test_gradients_pass_straight_through_the_threshold():
    masks = ShareMasks(2, SHAPE, 0.2).train()
    z = torch.ones(1, *SHAPE)
    masks(z)[0].sum().backward()
    sigmoid = masks.logits[0].detach().sigmoid()
    torch.testing.assert_close(masks.logits.grad[0], sigmoid * (1 - sigmoid))
    assert masks.logits.grad[1].abs().sum() == 0


def test_sparsity_and_overlap_are_what_they_are_called():
    """Two servers that both keep the first half of the features: overlap 1/2, density 1/2 against 1/4."""
    config = model_config("privdfs", num_servers=2, density=0.25, sparsity=1.0, overlap=1.0)
    defense = defense_class("privdfs")(config)
    model = defense.build()
    logits = model.edge[1].logits
    with torch.no_grad():
        logits.fill_(-1)
        logits[:, : logits.shape[1] // 2] = 1
    terms = defense.loss(model, _batch()).terms
    assert terms["sparsity"].item() == pytest.approx(2 * 0.25**2)
    assert terms["overlap"].item() == pytest.approx(0.5)


def test_fusion_leaves_out_what_was_not_received_and_keeps_the_scale():
    fusion = Fusion(4, 3)
    outputs = [torch.full((2, 3), float(k + 1)) for k in range(4)]
    received = torch.tensor([[1.0, 1, 1, 1], [1, 0, 1, 1]])
    fused = fusion(outputs, received)
    torch.testing.assert_close(fused, torch.tensor([[2.5] * 3, [(1 + 3 + 4) / 3] * 3]))
    outputs[1] = torch.full((2, 3), 9.0)
    torch.testing.assert_close(fusion(outputs, received)[1], fused[1])
    assert fusion(outputs, torch.zeros(2, 4)).isfinite().all()


def test_share_dropout_drops_one_server_at_the_stated_rate():
    torch.manual_seed(0)
    defense = defense_class("privdfs")(model_config("privdfs", num_servers=4, share_dropout=0.25))
    received = defense._drop(torch.zeros(4000, dtype=torch.int64))
    assert set(received.sum(1).tolist()) == {3.0, 4.0}
    assert (received.sum(1) == 3).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (1 - received).sum(0).min() > 150


def test_the_adversary_gets_its_gradient_and_the_encoder_the_reverse():
    torch.manual_seed(0)
    gradients = {}
    for weight in (1.0, 2.0):
        torch.manual_seed(1)
        config = model_config("privdfs", adversarial=weight, auxiliary=0.0, sparsity=0.0, overlap=0.0)
        defense = defense_class("privdfs")(config)
        model = defense.build()
        objective = defense.loss(model, _batch())
        objective.terms["adversary"].backward()
        gradients[weight] = (model.edge[0][1][0].weight.grad, defense.adversaries[0].grow.weight.grad)
    torch.testing.assert_close(gradients[2.0][0], 2 * gradients[1.0][0], rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(gradients[2.0][1], gradients[1.0][1])
    with torch.no_grad():  # a step along the encoder's gradient makes the decoders better, so descent makes them worse
        before = objective.terms["adversary"].item()
        torch.manual_seed(1)
        model.edge[0][1][0].weight += 1e-2 * gradients[2.0][0] / gradients[2.0][0].norm()
        after = defense.loss(model, _batch()).terms["adversary"].item()
    assert after < before


BAD = [
    ({"num_servers": 1}, "num_servers must be 2 to 8"),
    ({"num_servers": 9}, "num_servers must be 2 to 8"),
    ({"density": 0.0}, "density must be"),
    ({"density": 0.3}, "at most 1/4"),
    ({"density": 1e-5}, "keeps none of 2048 features"),
    ({"share_dropout": 1.0}, "share_dropout must be"),
    ({"label_smoothing": -0.1}, "label_smoothing must be"),
    ({"adversarial": -1.0}, "adversarial must not be negative"),
    ({"blocks": -1}, "blocks must be 0 to 16"),
    ({"blocks": 2, "backbone": "vit"}, "vit takes no residual blocks"),
    ({"branch_width": 0.0}, "branch_width must be"),
    ({"split": 4}, "split must be 1 to 3"),
    ({"split": 0}, "split must be 1 to 3"),
]


@pytest.mark.parametrize(("settings", "words"), BAD)
def test_settings_that_make_no_model_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        build_defense("privdfs", model_config("privdfs", **settings))


def test_the_masks_have_the_size_of_the_training_images():
    config = recipe_config("zoo", "privdfs", {}, {"image_size": 48})
    assert config.model.image_size == 48
    assert build_defense("privdfs", config.model).edge[1].logits.shape == (4, 128, 6, 6)


def test_another_key_deals_other_shares_of_the_same_features():
    torch.manual_seed(0)
    masks = ShareMasks(4, SHAPE, 0.1, keyed=True).eval()
    dealt = {}
    for key in (b"a" * 16, b"b" * 16):
        masks.use_key(key)
        dealt[key] = [set(kept.tolist()) for kept in masks.kept]
        assert [len(share) for share in dealt[key]] == [12] * 4
    one, two = dealt.values()
    assert set.union(*one) == set.union(*two)
    assert all(a != b for a, b in zip(one, two, strict=True))
    masks.use_key(b"a" * 16)
    assert [set(kept.tolist()) for kept in masks.kept] == one


def test_a_keyed_mask_is_dealt_anew_for_every_batch():
    torch.manual_seed(0)
    masks = ShareMasks(4, SHAPE, 0.1, keyed=True)
    first, second = masks.binary(), masks.binary()
    assert not torch.equal(first, second)
    for binary in (first, second):
        torch.testing.assert_close(binary.sum(0), masks.logits[0].gt(0).float(), atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def keyed_checkpoint(make_checkpoint):
    return make_checkpoint("privdfs", keyed=True, num_servers=2, blocks=0, branch_width=0.1)


def _share_files(bundle):
    return [hashlib.sha256((bundle / f"server{k}" / f"tail{k}.onnx").read_bytes()).hexdigest() for k in range(2)]


def test_a_keyed_export_differs_by_key_and_holds_no_key(keyed_checkpoint, tmp_path):
    for name, key in (("a", b"a" * 16), ("b", b"b" * 16), ("again", b"a" * 16)):
        export_bundle(keyed_checkpoint, tmp_path / name, images=parity_images(None, 32), key=key)
    assert _share_files(tmp_path / "a") == _share_files(tmp_path / "again")
    assert not set(_share_files(tmp_path / "a")) & set(_share_files(tmp_path / "b"))
    for file in (tmp_path / "a").rglob("*"):
        assert not file.is_file() or b"a" * 16 not in file.read_bytes()


def test_a_key_for_a_model_without_one_is_refused(make_checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="not trained for keys"):
        export_bundle(make_checkpoint("privdfs"), tmp_path / "b", images=parity_images(None, 32), key=b"k" * 16)
    assert not (tmp_path / "b").exists()


def test_a_keyed_model_without_a_key_is_refused(keyed_checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="give a user's by --key-file"):
        export_bundle(keyed_checkpoint, tmp_path / "b", images=parity_images(None, 32))
    assert not (tmp_path / "b").exists()


def test_another_image_size_is_refused(make_checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="for 32x32 images alone; 64x64"):
        export_bundle(make_checkpoint("privdfs"), tmp_path / "b", images=parity_images(None, 64), image_size=64)


def test_a_bundle_gives_what_torch_gives(shares_bundle, shares_checkpoint):
    model = shares_checkpoint.build()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    with torch.no_grad():
        shares = model.features(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
        expected = {
            name: model.classify(shares, torch.tensor(flags).expand(5, 4)).numpy()
            for name, flags in {"all": [1.0] * 4, "less": [1.0, 0, 1, 1]}.items()
        }
    with OnnxRuntimeBackend((shares_bundle / "edge" / "encoder.onnx").read_bytes()) as encoder:
        sent = encoder.run({"image": pixels})
    answers = {}
    for k, share in enumerate(shares):
        np.testing.assert_allclose(sent[f"share_{k}"], share.numpy(), atol=1e-5)
        with OnnxRuntimeBackend((shares_bundle / f"server{k}" / f"tail{k}.onnx").read_bytes()) as tail:
            answers |= tail.run({f"share_{k}": sent[f"share_{k}"]})
    with OnnxRuntimeBackend((shares_bundle / "edge" / "fusion.onnx").read_bytes()) as fusion:
        for name, flags in {"all": [1, 1, 1, 1], "less": [1, 0, 1, 1]}.items():
            received = np.tile(np.float32(flags), (5, 1))
            logits = fusion.run({**answers, "received": received})["logits"]
            np.testing.assert_allclose(logits, expected[name], atol=1e-5)


def test_a_server_holds_its_own_part_and_nothing_of_the_others(shares_bundle, shares_checkpoint):
    """By value: no encoder weight, no fusion weight, no other tail's weight, no other server's places."""
    model = shares_checkpoint.build()
    secrets = {
        "encoder": [p.numpy() for p in model.edge.state_dict().values()],
        "fusion": [p.numpy() for p in model.fusion.state_dict().values()],
        **{f"server{k}": [p.numpy() for p in tail.state_dict().values()] for k, tail in enumerate(model.tails)},
    }
    places = [kept.numpy() for kept in model.edge[1].kept]
    for k in range(4):
        party = open_party(shares_bundle / f"server{k}")
        assert sorted(party.files) == ["manifest.json", f"tail{k}.onnx"]
        assert [part.name for part in party.manifest.parts] == [f"tail{k}"]
        graph = onnx.load_from_string(party.files[f"tail{k}.onnx"]).graph
        held = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
        for owner, weights in secrets.items():
            found = sum(any(w.shape == h.shape and np.array_equal(w, h) for h in held) for w in weights if w.size > 10)
            assert (found > 0) == (owner == f"server{k}"), (owner, k)
        numbers = [h.ravel() for h in held if h.dtype == np.int64 and h.size > 10]
        assert len(numbers) == 1  # where each place of the dense tensor is in this server's share
        assert np.array_equal(np.flatnonzero(numbers[0] < len(places[k])), places[k])
        manifest = (shares_bundle / f"server{k}" / "manifest.json").read_text()
        for other in range(4):
            assert (f"share_{other}" in manifest) == (other == k)
        for word in ("density", "encoder", "fusion"):
            assert word not in manifest
