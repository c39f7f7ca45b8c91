"""The undefended model cut deeper and deeper: what tools/equal_privacy.py attacks is one network."""

import importlib.util

import pytest
import torch

from export.checkpoint import load_checkpoint
from export.cost import count_cost
from export.shipped import shipped_graphs
from export.zoo import zoo_model

from ..conftest import ROOT


@pytest.fixture(scope="module")
def cuts():
    spec = importlib.util.spec_from_file_location("equal_privacy", ROOT / "tools" / "equal_privacy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.cuts(load_checkpoint(zoo_model("none", "cnn"))))


def test_every_cut_is_the_same_network(cuts):
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = load_checkpoint(zoo_model("none", "cnn")).build()(images)
        for name, cut in cuts.items():
            torch.testing.assert_close(cut.build()(images), whole, msg=name)


def test_a_deeper_cut_costs_the_device_more(cuts):
    flops = [count_cost(shipped_graphs(cut, "float32").encoder_onnx(32, "static")).flops for cut in cuts.values()]
    assert list(cuts) == [f"none after block {n}" for n in range(1, len(flops) + 1)]
    assert flops == sorted(flops)
    assert flops[-1] > 5 * flops[0]
