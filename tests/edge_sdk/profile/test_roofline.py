from types import SimpleNamespace

import pytest

from edge_sdk.bundle import Cost, LayerCost
from edge_sdk.profile.conditions import Conditions
from edge_sdk.profile.devices import DEVICES
from edge_sdk.profile.layer_rows import layer_rows
from edge_sdk.profile.machine import Accelerator
from edge_sdk.profile.roofline import layer_points, measured_roofs, sheet_roofs


def test_a_layers_place_under_the_roof():
    layer = LayerCost("conv", "Conv", 1000, 0, 10, 90, (1, 2, 3))
    silent = LayerCost("relu", "Relu", 0, 5, 0, 10, (1, 2, 3))
    cost = Cost(flops=1000, other_ops=5, num_params=10, weight_bytes=40, layers=(layer, silent))
    part = SimpleNamespace(cost=cost, layer_ms={"conv": 0.5, "relu": 0.1}, gpu={}, kept_in_fp32=[])
    (point,) = layer_points(layer_rows(part, 2, "fp32"))
    assert point == ("conv", 2000, 2000 / (40 + 4 * 90 * 2), 2000 / 0.5e-3)


def test_the_machines_roofs_are_measured():
    for threads in (None, 1):
        roofs = measured_roofs(threads)
        assert 1e9 < roofs.flops < 1e14
        assert 1e8 < roofs.bytes_per_second < 1e13


def found(*, mode="15W", sms=8, highest=624, capability="8.7", precision="fp16"):
    """The roofs of a machine that tells this of itself."""
    accelerator = Accelerator("TensorRT 10.3", "Orin", "CUDA 12.6", capability, sms)
    return sheet_roofs(accelerator, Conditions(mode, (306, 306, highest), None, {}, []), precision)


def test_a_jetsons_roofs_are_its_data_sheets():
    roofs = found()
    assert roofs.flops == 8 * 612e6 * 2048
    assert roofs.bytes_per_second == 68e9
    assert "Jetson Orin Nano 8 GB in 15W: 8 SMs at 612 MHz, dense fp16" in roofs.source
    assert found(precision="int8").flops == 2 * roofs.flops


def test_modules_that_cannot_be_told_apart_are_both_named():
    """Of one GPU and one memory."""
    roofs = found(mode="MODE_15W", sms=6, highest=408)
    assert "AGX Orin 32 GB or Jetson AGX Orin 64 GB" in roofs.source
    assert roofs.bytes_per_second == pytest.approx(136.6e9, rel=1e-3)


@pytest.mark.parametrize(
    "told",
    [{"mode": "60W"}, {"sms": 3}, {"highest": 510}, {"capability": "8.6"}, {"mode": None}, {"capability": None}],
)
def test_no_roof_is_guessed(told):
    assert found(**told) is None


def test_what_a_gpu_lacks_has_no_roof():
    mode = DEVICES["nano"].modes[0]
    told = {"mode": mode.name, "sms": mode.num_sms, "highest": mode.gpu_mhz, "capability": "5.3"}
    assert found(**told, precision="fp16").flops == 921e6 * 512
    assert found(**told, precision="int8") is None
