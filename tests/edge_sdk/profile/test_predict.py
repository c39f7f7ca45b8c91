"""The estimates: by hand, against the published latencies, and from the command line."""

import json
import math

import numpy as np
import pytest

from edge_sdk.bundle import LayerCost
from edge_sdk.errors import ConfigError
from edge_sdk.profile.devices import DEVICES, Device, PowerMode, find_device
from edge_sdk.profile.predict import (
    CONSTANTS,
    COVERED_UNSEEN,
    INTERVAL,
    INTERVAL_WITHOUT_PRIOR,
    MEDIAN_ERROR,
    MEDIAN_ERROR_WITHOUT_PRIOR,
    WORST_BOARD,
    WORST_BOARD_COVERED,
    WORST_BOARD_ERROR,
    Constants,
    Kernel,
    fuse_kernels,
    kernel_ms,
)

from ...conftest import ROOT, assert_one_line_error, edgesdk, edgesdk_here

MODE = PowerMode("any", 2, 1000, 10.0)
DEVICE = Device("any", "any", "8.7", 100, {"fp32": 400, "fp16": 800}, (MODE,))
PLAIN = Constants(
    efficiency=0.5, staging=1e12, bandwidth=0.5, launch_us=3.0, cycles=2000.0, thin=0.1, tile=100.0, moves=2.0
)


def _layer(op, flops=0, elements=0, params=0, shape=(1, 8)):
    return LayerCost(op.lower(), op, flops, 0, params, elements, shape)


def test_a_kernel_that_computes_by_hand():
    kernel = Kernel(flops=8_000_000, elements=1000, outputs=1000, moves=False)
    # 2 SMs at 1 GHz with 0.5 of 800 FLOPs a clock: 10 us; 3 us and 2000 cycles, 2 us, beside
    assert kernel_ms(kernel, DEVICE, MODE, "fp16", PLAIN) == pytest.approx(0.015)


def test_a_kernel_that_moves_bytes_by_hand():
    kernel = Kernel(flops=0, elements=10_000, outputs=5000, moves=False)
    # 40,000 bytes at half of 10 GB/s: 8 us
    assert kernel_ms(kernel, DEVICE, MODE, "fp32", PLAIN) == pytest.approx(0.013)
    assert kernel_ms(kernel._replace(moves=True), DEVICE, MODE, "fp32", PLAIN) == pytest.approx(0.026)


def test_a_small_output_leaves_multiprocessors_idle():
    kernel = Kernel(flops=8_000_000, elements=0, outputs=100, moves=False)  # one tile for two SMs
    assert kernel_ms(kernel, DEVICE, MODE, "fp16", PLAIN) == pytest.approx(0.025)


def test_few_multiplications_an_output_run_on_cuda_cores():
    kernel = Kernel(flops=2 * 9 * 10_000, elements=0, outputs=10_000, moves=False)
    # a tenth of 100 FLOPs a clock on 2 SMs at 1 GHz: 9 us
    assert kernel_ms(kernel, DEVICE, MODE, "fp16", PLAIN) == pytest.approx(0.014)


def test_elementwise_operators_join_what_is_before_them():
    layers = [
        _layer("Cast"), _layer("Sub", elements=6), _layer("Conv", 100, 20, 5), _layer("Relu", elements=16),
        _layer("Reshape"), _layer("MaxPool", elements=12, shape=(1, 4)), _layer("Concat", elements=9),
        _layer("Gemm", 50, 14, 40, (1, 10)), _layer("Add", elements=20),
    ]  # fmt: skip
    assert fuse_kernels(layers) == [
        Kernel(0, 6, 8, False), Kernel(100, 25, 8, False), Kernel(0, 12, 4, False), Kernel(0, 9, 8, True),
        Kernel(50, 54, 10, False),
    ]  # fmt: skip


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda device: device.name)
def test_a_higher_mode_and_a_lower_precision_are_never_slower(device):
    kernels = [Kernel(20_000_000, 50_000, 8192, False), Kernel(0, 20_000, 10_000, True)]
    times = [
        [sum(kernel_ms(k, device, mode, p, CONSTANTS) for k in kernels) for p in device.peak_flops]
        for mode in (device.modes[0], device.modes[-1])
    ]
    for highest, lowest in zip(*times, strict=True):
        assert highest <= lowest
    for mode in times:
        assert mode == sorted(mode, reverse=True)


def test_orin_figures_give_the_published_peaks():
    """171 sparse INT8 TOPS of the GPU for AGX Orin 64 GB, 67 for Orin Nano Super: twice the dense ones."""
    for name, tops in (("agx-orin-64gb", 171), ("orin-nano-8gb", 67)):
        device = find_device(name)
        mode = device.modes[0]
        dense = mode.num_sms * mode.gpu_mhz * 1e6 * device.peak_flops["int8"] / 1e12
        assert 2 * dense == pytest.approx(tops, rel=0.01)


@pytest.fixture
def fit_predictor(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import fit_predictor

    return fit_predictor


def test_the_kept_kernels_are_those_of_this_fusing(fit_predictor):
    counted = fit_predictor.count_kernels("squeezenet1_1")
    assert counted["squeezenet1_1"] == fit_predictor.load_kernels()["squeezenet1_1"]


def test_the_constants_and_their_error_are_those_of_the_fit(fit_predictor):
    kernels = fit_predictor.load_kernels()
    found = fit_predictor.fit(fit_predictor.POINTS, kernels)
    for name in Constants.__struct_fields__:
        assert getattr(found, name) == pytest.approx(getattr(CONSTANTS, name), rel=0.02), name
    boards = fit_predictor.by_board(fit_predictor.errors_of_unseen_devices(kernels))
    unseen = [error for errors in boards.values() for error in errors]
    assert np.median([abs(math.exp(error) - 1) for error in unseen]) == pytest.approx(MEDIAN_ERROR, abs=0.02)
    worst = {name: fit_predictor.median_error(errors) for name, errors in boards.items()}
    assert max(worst, key=worst.get) == WORST_BOARD
    assert worst[WORST_BOARD] == pytest.approx(WORST_BOARD_ERROR, abs=0.03)
    assert fit_predictor.factor(boards) == pytest.approx(INTERVAL, abs=0.05)
    covered = [np.mean([abs(error) <= math.log(INTERVAL) for error in errors]) for errors in boards.values()]
    assert np.mean(covered) >= 0.8
    unseen = fit_predictor.covered_unseen(boards)  # the factor knows the board as little as the fit does
    assert np.mean([held for found in unseen.values() for held in found]) == pytest.approx(COVERED_UNSEEN, abs=0.02)
    assert COVERED_UNSEEN >= 0.8
    assert np.mean(unseen[WORST_BOARD]) == pytest.approx(WORST_BOARD_COVERED, abs=0.01)


def test_the_error_without_the_prior_is_told_too(fit_predictor, bundle):
    """The prior was chosen by the error that is told."""
    kernels = fit_predictor.load_kernels()
    free = fit_predictor.errors_of_unseen_devices(kernels, trust=0.0)
    assert fit_predictor.median_error(list(free.values())) == pytest.approx(MEDIAN_ERROR_WITHOUT_PRIOR, abs=0.03)
    assert fit_predictor.factor(fit_predictor.by_board(free)) == pytest.approx(INTERVAL_WITHOUT_PRIOR, abs=0.1)
    done = edgesdk_here("profile", bundle / "edge", "--device", "nano")
    assert "without it the median error is 54%, and the factor 2.4" in " ".join(done.stdout.split())
    report = json.loads(edgesdk_here("profile", bundle / "edge", "--device", "nano", "--json", "-").stdout)
    assert report["median_error_without_prior"] == MEDIAN_ERROR_WITHOUT_PRIOR
    assert report["interval_without_prior"] == INTERVAL_WITHOUT_PRIOR


def test_the_command_estimates_and_says_so(bundle):
    done = edgesdk("profile", bundle / "edge", "--device", "orin-nano-8gb", "--power-mode", "MODE_15w", "--json", "-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["measured"] is False
    assert [each["precision"] for each in report["defended"]] == ["fp32", "fp16", "int8"]
    for each in report["defended"]:
        assert each["power_mode"] == "15W"
        assert 0 < each["low_ms"] < each["latency_ms"] < each["high_ms"]
    assert len(report["undefended"]) == 3
    table = edgesdk("profile", bundle / "edge", "--device", "all", "--precision", "fp16").stdout
    assert "ESTIMATED, not measured" in table
    assert all(name in table for name in DEVICES)
    assert "agx-orin-64gb" in edgesdk("profile", "--device", "list").stdout


def test_unknown_devices_and_modes_are_one_line(bundle):
    assert_one_line_error(edgesdk("profile", bundle / "edge", "--device", "orin"), "no device 'orin'", "orin-nano-8gb")
    done = edgesdk("profile", bundle / "edge", "--device", "nano", "--power-mode", "25W")
    assert_one_line_error(done, "nano has no power mode '25W'", "MAXN, 5W")
    assert edgesdk("profile", bundle / "edge", "--power-mode", "15W").returncode == 2
    assert edgesdk("profile").returncode == 2
    with pytest.raises(ConfigError, match="no device 'x'"):
        find_device("x")
