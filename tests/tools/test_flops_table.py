"""FLOPs counted from the exported ONNX, beside torch's own FlopCounterMode, layer by layer."""

import importlib

import pytest
import torch

from export.checkpoint import build_defense
from export.defenses import model_config
from export.models import BACKBONES

from ..conftest import ROOT

SHIPPED = ("siftfunnel cnn", "privdfs cnn")


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("flops_table")


def assert_every_layer_is_the_same(cost, torchs):
    """All convolutions and matrix products, in the order they run."""
    assert [layer.flops for layer in cost.layers if layer.flops] == torchs
    assert cost.flops == sum(torchs)


@pytest.mark.parametrize("name", [*(f"none {backbone}" for backbone in BACKBONES), *SHIPPED])
def test_every_layer_of_every_part_has_the_flops_that_torch_counts(table, name):
    counted = {part: table.count(graph, example) for part, graph, example in table.parts(table.MODELS[name]())}
    several = name == "privdfs cnn"
    assert set(counted) == {"encoder", *([f"tail {i}" for i in range(4)] + ["fusion"] if several else ["tail"])}
    for part, (cost, torchs) in counted.items():
        assert_every_layer_is_the_same(cost, torchs)
        assert (cost.flops == 0) == (part == "fusion")  # which adds and multiplies alone


@pytest.mark.parametrize("backbone", ["cnn", "resnet18", "vgg16"])
@pytest.mark.parametrize(("defense", "size"), [("none", 16), ("siftfunnel", 16), ("siftfunnel", 32)])
def test_so_it_is_at_other_sizes_and_with_an_open_batch(table, defense, backbone, size):
    model = build_defense(defense, model_config(defense, backbone=backbone)).eval()
    cost, torchs = table.count(model.edge, (torch.rand(1, 3, size, size),), "dynamic")
    assert_every_layer_is_the_same(cost, torchs)
    assert cost.flops > 0


def test_the_tool_has_all_of_these(table):
    assert list(table.MODELS) == [*(f"none {backbone}" for backbone in BACKBONES), *SHIPPED]


def test_torchs_numbers_are_those_of_each_operation(table):
    """Worked out by hand, two of them alike, and one that has none between them."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(20, 7))
    cost, torchs = table.count(model.eval(), (torch.zeros(1, 3, 4, 4),))
    assert torchs == [2 * 5 * 2 * 2 * 3 * 9, 2 * 20 * 7]
    assert_every_layer_is_the_same(cost, torchs)
