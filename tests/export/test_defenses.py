import pytest
import torch

from edge_sdk.errors import ConfigError
from export.checkpoint import build_defense
from export.defenses import DEFENSES, Batch, defense_class, model_config
from export.models import BACKBONES, build_backbone, build_branch
from export.models.attention import SqueezeExcitation
from export.models.resnet18 import BasicBlock
from export.models.vit import sine_cosine
from export.recipes import recipe_config

SHAPES = {  # of the features at H = W = size, as the table of the paper's reference has them
    ("siftfunnel", "cnn"): lambda size: (12, size // 4, size // 4),
    ("siftfunnel", "resnet18"): lambda size: (6, size // 2, size // 2),
    ("siftfunnel", "vgg16"): lambda size: (4, size // 4, size // 4),
    ("none", "cnn"): lambda size: (128, size // 4, size // 4),
    ("none", "resnet18"): lambda size: (128, size // 2, size // 2),
    ("none", "vgg16"): lambda size: (128, size // 4, size // 4),
    ("none", "vit"): lambda size: ((size // 4) ** 2, 192),
}


@pytest.mark.parametrize("size", [16, 48])
@pytest.mark.parametrize(("defense", "backbone"), SHAPES)
def test_features_and_logits_have_the_stated_shapes(defense, backbone, size):
    model = build_defense(defense, model_config(defense, backbone=backbone, num_classes=7)).eval()
    with torch.no_grad():
        features = model.features(torch.rand(2, 3, size, size))
        logits = model.classify(features)
    assert [tuple(z.shape) for z in features] == [(2, *SHAPES[defense, backbone](size))]
    assert logits.shape == (2, 7)


def _convolutions(module):
    return [
        (m.in_channels, m.out_channels, m.kernel_size[0]) for m in module.modules() if isinstance(m, torch.nn.Conv2d)
    ]


GATE = (2, 1, 7)


def test_the_cnn_funnel_is_the_papers_layer_by_layer():
    model = build_defense("siftfunnel", model_config("siftfunnel"))
    assert _convolutions(model.edge) == [
        (3, 64, 3),
        *((64, 2, 1), (2, 64, 1)),  # squeeze-excitation 32
        *[GATE] * 3,  # triplet attention
        *((64, 16, 1), (16, 12, 1)),
        *((12, 12, 3), (12, 12, 1), (12, 12, 3), (12, 12, 5)),
        *((12, 3, 1), (3, 12, 1)),  # squeeze-excitation 4
        *((12, 2, 1), (2, 12, 1), GATE),  # CBAM 6
    ]
    assert _convolutions(model.tails[0]) == [
        (12, 128, 3),
        (128, 128, 3),
        *[GATE] * 3,
        *((128, 256, 3), (256, 256, 3), (256, 256, 3)),  # the backbone's third block, a residual block in it
        *((256, 256, 3), (256, 256, 3)),
    ]


def test_the_resnet_and_vgg_funnels_are_the_papers():
    resnet = _convolutions(build_defense("siftfunnel", model_config("siftfunnel", backbone="resnet18")).edge)
    assert resnet == [
        (3, 64, 3), (64, 4, 1), (4, 64, 1), *[GATE] * 3, (64, 128, 3), (128, 128, 3), (128, 4, 1), (4, 128, 1),
        *[GATE] * 3, (128, 32, 1), (32, 6, 1), (6, 6, 3), (6, 6, 1), (6, 6, 3), (6, 6, 5), (6, 2, 1), (2, 6, 1),
        (6, 2, 1), (2, 6, 1), GATE,
    ]  # fmt: skip
    vgg = _convolutions(build_defense("siftfunnel", model_config("siftfunnel", backbone="vgg16")).edge)
    assert vgg == [
        (3, 64, 3), (64, 64, 3), (64, 4, 1), (4, 64, 1), *[GATE] * 3, (64, 128, 3), (128, 128, 3), (128, 4, 1),
        (4, 128, 1), *[GATE] * 3, (128, 32, 3), (32, 4, 1), (4, 4, 3), (4, 4, 1), (4, 4, 3), (4, 4, 5), (4, 1, 1),
        (1, 4, 1), (4, 1, 1), (1, 4, 1), GATE,
    ]  # fmt: skip


def test_without_the_funnels_pooling_the_features_are_twice_as_high_and_wide():
    model = build_defense("siftfunnel", model_config("siftfunnel", funnel_pool=False)).eval()
    (z,) = model.features(torch.rand(2, 3, 32, 32))
    assert z.shape == (2, 12, 16, 16)
    assert model.classify((z,)).shape == (2, 10)


@pytest.mark.parametrize(("backbone", "at"), [("cnn", 8), ("resnet18", 16), ("vgg16", 8)])
def test_blocks_come_after_the_funnels_pooling_and_leave_the_features_as_many(backbone, at):
    model = build_defense("siftfunnel", model_config("siftfunnel", backbone=backbone, blocks=2)).eval()
    sizes = []
    for layer in model.edge:
        if isinstance(layer, BasicBlock):
            layer.register_forward_hook(lambda layer, inputs, out: sizes.append(out.shape[2:]))
    (z,) = model.features(torch.rand(2, 3, 32, 32))
    assert sizes == [(at, at)] * 2
    assert z.shape[1:] == SHAPES["siftfunnel", backbone](32)


@pytest.mark.parametrize(("backbone", "width", "at"), [("cnn", 64, 16), ("resnet18", 128, 16), ("vgg16", 128, 8)])
def test_convolutions_come_before_the_funnels_pooling(backbone, width, at):
    plain, deeper = (
        build_defense("siftfunnel", model_config("siftfunnel", backbone=backbone, convolutions=k)).eval()
        for k in (0, 2)
    )
    seen = []
    for layer in deeper.edge.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.weight.shape == (width, width, 3, 3):
            layer.register_forward_hook(lambda layer, inputs, out: seen.append(out.shape[2:]))
    (z,) = deeper.features(torch.rand(2, 3, 32, 32))
    assert z.shape[1:] == SHAPES["siftfunnel", backbone](32)
    assert seen[-2:] == [(at, at)] * 2
    more = sum(p.numel() for p in deeper.edge.parameters()) - sum(p.numel() for p in plain.edge.parameters())
    assert more == 2 * (9 * width**2 + 2 * width)


@pytest.mark.parametrize("defense", ["siftfunnel", "privdfs"])
def test_standardizing_makes_the_features_forget_an_images_brightness_and_contrast(defense):
    torch.manual_seed(0)
    model = build_defense(defense, model_config(defense, standardize=True)).eval()
    x = torch.rand(4, 3, 32, 32)
    before, after = model.features(x)[0], model.features(0.3 + 0.5 * x)[0]
    torch.testing.assert_close(after, before, rtol=0.01, atol=1e-4)
    plain = build_defense(defense, model_config(defense, standardize=False)).eval()
    assert (plain.features(x)[0] - plain.features(0.3 + 0.5 * x)[0]).abs().max() > 0.01


def test_bounded_features_stay_in_their_bounds_for_whatever_image_comes():
    torch.manual_seed(0)
    model = build_defense("siftfunnel", model_config("siftfunnel", bounded=True))
    model.edge.train()
    for _ in range(5):  # running statistics of what images look like
        model.features(torch.rand(32, 3, 32, 32))
    model.eval()
    odd = 100 * (torch.rand(4, 3, 32, 32) > 0.99)
    (z,) = model.features(odd)
    assert -3 <= z.min() < z.max() <= 3
    (unbounded,) = build_defense("siftfunnel", model_config("siftfunnel")).eval().features(100 * odd)
    assert unbounded.max() > 6


def test_no_channel_of_bounded_features_shrinks_out_of_the_correlations_sight():
    torch.manual_seed(0)
    images = torch.rand(64, 3, 32, 32)
    spreads = {}
    for bounded in (True, False):
        model = build_defense("siftfunnel", model_config("siftfunnel", bounded=bounded))
        gates = [layer for layer in model.edge if isinstance(layer, SqueezeExcitation)][-1]
        with torch.no_grad():  # of the first channel they let a thousandth through
            gates.excite.bias[0] = -7
        spreads[bounded] = model.features(images)[0].std((0, 2, 3))
    assert 0.8 < spreads[True].min() <= spreads[True].max() < 1.05
    assert spreads[False][0] < 0.01 * spreads[False].max()


def test_features_are_not_negative():
    model = build_defense("siftfunnel", model_config("siftfunnel")).eval()
    assert model.features(torch.rand(4, 3, 32, 32))[0].min() >= 0


@pytest.mark.parametrize(("backbone", "blocks"), [("cnn", 4), ("resnet18", 5), ("vgg16", 5), ("vit", 7)])
def test_the_undefended_model_is_the_same_network_wherever_it_is_cut(backbone, blocks):
    x = torch.rand(2, 3, 32, 32)
    torch.manual_seed(0)
    whole = build_backbone(backbone, 10)
    assert len(whole.blocks) == blocks
    logits = []
    for split in range(1, blocks + 1):
        torch.manual_seed(0)
        model = build_defense("none", model_config("none", backbone=backbone, split=split)).eval()
        logits.append(model(x))
        assert len(model.edge) == split + 1  # and the normalisation
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0])


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("split", [1, 2, 3])
def test_a_branch_of_full_width_is_the_backbones_end(backbone, split):
    whole = build_backbone(backbone, 10)
    branch = build_branch(backbone, split, 1.0, 10)
    end = torch.nn.Sequential(*whole.blocks[split:], whole.classifier)
    shapes = [p.shape for p in branch.parameters()]
    if backbone == "vit":
        assert shapes[:2] == [(192, 192), (192,)]  # what narrows the tokens, here to their own width
        shapes = shapes[2:]
    assert shapes == [p.shape for p in end.parameters()]
    x = torch.nn.Sequential(*whole.blocks[:split])(torch.rand(2, 3, 32, 32))
    assert branch.eval()(x).shape == (2, 10)
    assert sum(p.numel() for p in build_branch(backbone, split, 0.5, 10).parameters()) < 0.6 * sum(
        p.numel() for p in branch.parameters()
    )


def test_a_vision_transformer_has_the_same_weights_at_every_size():
    model = build_defense("none", model_config("none", backbone="vit")).eval()
    for size in (16, 32, 80):
        assert model(torch.rand(1, 3, size, size)).shape == (1, 10)


def test_positions_are_told_apart_by_row_and_column():
    grid = sine_cosine(3, 5, 192)
    assert grid.shape == (15, 192)
    assert torch.pdist(grid).min() > 1
    assert torch.equal(grid[0, :96], grid[4, :96])  # one row
    assert torch.equal(grid[0, 96:], grid[5, 96:])  # one column


def test_the_objective_is_the_weighted_sum_of_its_terms():
    torch.manual_seed(0)
    batch = Batch(torch.rand(8, 3, 32, 32), torch.arange(8) % 10, torch.eye(10)[torch.arange(8) % 10])
    cls = defense_class("siftfunnel")
    one = cls(model_config("siftfunnel", alpha=1, beta=1, gamma=1, lambda_l1=1))
    model = one.build().eval()
    paper = cls(model_config("siftfunnel")).loss(model, batch)
    plain = one.loss(model, batch)
    for name, weight in (("kl", 5), ("distance_correlation", 2), ("channel_correlation", 2), ("l1", 0.03)):
        torch.testing.assert_close(paper.terms[name], weight * plain.terms[name])
    torch.testing.assert_close(paper.total, sum(paper.terms.values()))


@pytest.mark.parametrize("defense", DEFENSES)
def test_the_loss_reaches_every_parameter(defense):
    torch.manual_seed(0)
    settings = {"sigma": [0.1]} if defense == "fsinfoguard" else {}
    instance = defense_class(defense)(model_config(defense, **settings))
    model = instance.build()
    instance.loss(
        model, Batch(torch.rand(8, 3, 32, 32), torch.arange(8) % 10, torch.eye(10)[torch.arange(8) % 10])
    ).total.backward()
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    for name, parameter in trained:
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(
    ("defense", "settings", "words"),
    [
        (
            "nothing",
            {},
            "no defense 'nothing'; available: dropout, fsinfoguard, gaussian, none, nopeek, privdfs, siftfunnel",
        ),
        ("none", {"backbone": "mlp"}, "no backbone 'mlp'; available: cnn, resnet18, vgg16, vit"),
        ("siftfunnel", {"backbone": "vit"}, "siftfunnel has no encoder for vit"),
        ("none", {"label_smoothing": 1.0}, "label_smoothing must be"),
        ("none", {"beta": 1}, "none has no setting beta"),
        ("none", {"num_classes": 1}, "at least 2"),
        ("none", {"num_classes": "ten"}, "num_classes"),
        ("none", {"num_classes": 10.5}, "num_classes"),
        ("none", {"backbone": {"a": 1}}, "backbone"),
        ("none", {"std": 0.5}, "std"),
        ("none", {"std": []}, "std"),
        ("none", {"mean": [1, 2]}, "mean"),
        ("none", {"split": "two"}, "split"),
        ("none", {"std": [0, 1, 1]}, "std must be positive"),
        ("none", {"split": 0}, "split must be 1 to 4"),
        ("none", {"split": 5}, "split must be 1 to 4"),
        ("siftfunnel", {"beta": -1}, "beta must not be negative"),
        ("siftfunnel", {"smoothing": 1.0}, "smoothing must be in"),
        ("siftfunnel", {"funnel_pool": 1}, "funnel_pool"),
        ("siftfunnel", {"blocks": 17}, "blocks must be 0 to 16, got 17"),
        ("siftfunnel", {"convolutions": -1}, "convolutions must be 0 to 16, got -1"),
        ("siftfunnel", {"funnel_pool": False, "backbone": "vgg16"}, "no pooling to leave out"),
    ],
)
def test_settings_that_cannot_be_are_refused(defense, settings, words):
    with pytest.raises(ConfigError) as caught:
        build_defense(defense, model_config(defense, **settings))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "changes", "words"),
    [
        ("none such", {}, "no recipe 'none such'"),
        ("zoo", {"epochs": 0}, "epochs must be positive"),
        ("zoo", {"learning_rate": -1.0}, "learning_rate must be positive"),
        ("zoo", {"batch_size": 1}, "at least 2"),
        ("zoo", {"image_size": 40}, "multiple of 16"),
        ("zoo", {"precision": "float64"}, "float32 or bfloat16"),
    ],
)
def test_recipes_that_cannot_be_are_refused(recipe, changes, words):
    with pytest.raises(ConfigError, match=words):
        recipe_config(recipe, "none", {}, changes)


def test_the_papers_recipe_has_the_papers_numbers():
    config = recipe_config("siftfunnel-paper", "siftfunnel", {}, {})
    assert (config.epochs, config.image_size, config.batch_size) == (300, 64, 128)
    assert (config.optimizer, config.betas, config.amsgrad) == ("adam", (0.5, 0.999), True)
    assert (config.learning_rate, config.weight_decay, config.schedule) == (0.01, 1e-3, "plateau")
    assert (config.color_jitter, config.crop_padding) == (0.2, 0)
