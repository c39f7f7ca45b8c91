import pytest
import torch

from edge_sdk.errors import ConfigError
from export.models.attention import CBAM, SqueezeExcitation, TripletAttention

X = torch.randn(2, 8, 5, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("gate", [SqueezeExcitation(8, 4), TripletAttention(), CBAM(8, 4)])
def test_gates_keep_the_shape_and_lie_between_zero_and_one(gate):
    ratio = gate.eval()(X) / X
    assert ratio.shape == X.shape
    assert ratio.min() > 0
    assert ratio.max() < 1


def test_with_zero_weights_every_gate_is_one_half():
    se, triplet, cbam = SqueezeExcitation(8, 4), TripletAttention().eval(), CBAM(8, 4)
    for gate in (se, triplet, cbam):
        for parameter in gate.parameters():
            torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(se(X), X / 2)
    torch.testing.assert_close(triplet(X), X / 2)  # the mean of three halves
    torch.testing.assert_close(cbam(X), X / 4)  # channel gate, then spatial gate


def test_triplet_attention_gates_over_all_three_pairs_of_axes():
    triplet = TripletAttention().eval()
    for name in ("gate_hw", "gate_cw", "gate_hc"):
        for parameter in triplet.parameters():
            torch.nn.init.zeros_(parameter)
        getattr(triplet, name).conv.weight.data[:, :, 3, 3] = 1  # max + mean at the position itself
        torch.nn.init.ones_(getattr(triplet, name).norm.weight)
        gates = triplet(X).detach() / X * 3 - 1  # what the one gate that is not constant gives
        constant_along = {"gate_hw": 1, "gate_cw": 2, "gate_hc": 3}[name]
        spread = [float((gates - gates.mean(axis, keepdim=True)).abs().max()) for axis in (1, 2, 3)]
        assert spread[constant_along - 1] < 1e-4
        assert all(value > 1e-3 for axis, value in enumerate(spread, 1) if axis != constant_along)


def test_a_reduction_to_nothing_is_refused():
    with pytest.raises(ConfigError, match="no hidden channel of 8"):
        SqueezeExcitation(8, 16)
    with pytest.raises(ConfigError, match="no hidden channel of 8"):
        CBAM(8, 16)
