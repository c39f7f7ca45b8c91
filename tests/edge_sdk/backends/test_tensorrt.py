"""TensorRT on a real GPU, which has to be asked for (-m gpu) and has never run so far; and over an emulated one."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

import edge_sdk.engine.gpu
import edge_sdk.engine.library
from edge_sdk.backends import Execution, tensorrt
from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.backends.tensorrt import TensorRTBackend
from edge_sdk.bundle import open_party
from edge_sdk.cli.profile_tables import print_comparison, print_profile
from edge_sdk.engine.build import EngineOptions
from edge_sdk.engine.cache import CachedEngine
from edge_sdk.engine.gpu import Gpu
from edge_sdk.errors import BackendError, MissingExtra
from edge_sdk.profile.encoder import profile_edge
from edge_sdk.profile.feeds import random_feeds
from edge_sdk.profile.report import write_html

from .emulated import Driver, library


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-3), ("fp16", 2e-2), ("int8", 0.2)])
@pytest.mark.parametrize("party", ["edge", "server0"])
def test_the_engine_gives_what_onnx_runtime_gives(bundle, monkeypatch, tmp_path, party, precision, tolerance):
    monkeypatch.setenv("EDGESDK_CACHE", str(tmp_path))
    opened = open_party(bundle / party)
    part = opened.manifest.parts[0]
    onnx = opened.onnx(part, precision)
    with (
        OnnxRuntimeBackend(onnx) as reference,
        TensorRTBackend(part.name, onnx, EngineOptions(precision=precision, max_batch=4)) as engine,
    ):
        assert {spec.name for spec in engine.inputs} == {spec.name for spec in part.inputs}
        for batch in (4, 1, 3):
            feeds = random_feeds(reference.inputs, batch)
            for name, expected in reference.run(feeds).items():
                found = engine.run(feeds)[name]
                assert found.dtype == expected.dtype
                assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
        with pytest.raises(BackendError, match="built for batch 4 at most, got 5"):
            engine.run(random_feeds(reference.inputs, 5))
        times = engine.timed_run(random_feeds(reference.inputs, 1))
        assert times.gpu_compute_ms > 0
        assert engine.layer_times(random_feeds(reference.inputs, 1), runs=3)


@pytest.fixture(params=[False, True], ids=["discrete", "integrated"])
def driver(request, monkeypatch):
    """CUDA's, of a GPU that is the CPU; engines are the models that they would be built from."""
    driver = Driver(integrated=request.param)
    gpu = Gpu(name="emulated", compute_capability="8.7", num_sms=8, integrated=request.param)
    found = library(driver)
    monkeypatch.setattr(Gpu, "here", classmethod(lambda cls: gpu))
    for module in (tensorrt, edge_sdk.engine.gpu):
        monkeypatch.setattr(module, "cuda", lambda: driver)
    for module in (tensorrt, edge_sdk.engine.library):
        monkeypatch.setattr(module, "load_library", lambda name: found)
    monkeypatch.setattr(
        tensorrt, "cached_engine", lambda name, onnx, *_, **__: CachedEngine(onnx, None, Path(name), True)
    )
    return driver


@pytest.fixture
def encoder(bundle):
    opened = open_party(bundle / "edge")
    return opened.onnx(opened.manifest.parts[0])


def test_what_the_runner_does_around_an_engine(driver, encoder):
    with (
        OnnxRuntimeBackend(encoder) as reference,
        TensorRTBackend("encoder", encoder, EngineOptions(max_batch=4)) as engine,
    ):
        assert engine.inputs == reference.inputs
        assert engine.outputs == reference.outputs
        assert engine.gpu_memory_bytes >= 1000
        last = None
        for batch in (4, 1, 3):
            feeds = random_feeds(reference.inputs, batch)
            driver.done.clear()
            found = engine.run(feeds)
            copies = [] if driver.integrated else ["to the GPU"]
            back = [] if driver.integrated else ["from the GPU"]
            assert driver.done == [*copies, "layers", *back, "synchronize"]
            for name, expected in reference.run(feeds).items():
                np.testing.assert_array_equal(found[name], expected)
            if last is not None:  # an answer is the caller's own, not the buffer of the next run
                np.testing.assert_array_equal(*last)
            last = found["features"], found["features"].copy()
        with pytest.raises(BackendError, match="built for batch 4 at most, got 5"):
            engine.run(random_feeds(reference.inputs, 5))
        times = engine.timed_run(feeds)
        assert (times.h2d_ms, times.gpu_compute_ms, times.d2h_ms) == ((0, 1, 0) if driver.integrated else (1, 1, 1))
        assert engine.layer_times(feeds, runs=3) == {"node_conv2d + node_relu": 0.25}
    assert driver.pushed == 0
    assert not driver.memory  # all was given back


def test_a_kept_engine_that_loads_no_more_is_built_again(driver, encoder, monkeypatch):
    """As after an update of TensorRT that its Python package does not tell."""
    asked = []

    def cached(name, onnx, *_, anew=False):
        asked.append(anew)
        return CachedEngine(onnx if anew else b"damaged", None, Path(name), not anew)

    monkeypatch.setattr(tensorrt, "cached_engine", cached)
    with TensorRTBackend("encoder", encoder, EngineOptions()) as engine:
        assert engine.outputs
    assert asked == [False, True]


def test_an_engine_that_does_not_load_is_named(driver):
    with pytest.raises(BackendError, match="does not load what it built, encoder: "):
        TensorRTBackend("encoder", b"damaged", EngineOptions())
    assert driver.pushed == 0


def test_a_profile_of_a_gpu_tells_its_steps_and_layers(driver, bundle, tmp_path, capsys):
    report = profile_edge(bundle / "edge", runs=3, warmup=1, execution=Execution("tensorrt"))
    assert str(report.accelerator) == "TensorRT 10.3.0, emulated (sm_87, 8 SMs), driver of CUDA 12.6"
    assert set(report.encoder.gpu) == {"enqueue_ms", "h2d_ms", "gpu_compute_ms", "d2h_ms"}
    print_profile(report, layers=True)
    printed = capsys.readouterr().out
    assert "TensorRT 10.3.0, emulated" in " ".join(printed.replace("\n", " ").split())
    assert "gpu_compute" in printed
    assert "the engine's layers" in printed
    assert "copies to the GPU and back included (where the GPU shares" in " ".join(printed.split())
    write_html(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "gpu_compute" in page
    assert "node_conv2d + node_relu" in page
    assert "No roofline" in page
    begin = msgspec.structs.replace(report.begin, power_mode="15W", gpu_mhz=(612, 306, 612))
    costly = max(report.encoder.cost.layers, key=lambda layer: layer.flops).name
    encoder = msgspec.structs.replace(report.encoder, layer_ms={f"{costly} + node_relu": 0.25})
    write_html(msgspec.structs.replace(report, begin=begin, encoder=encoder), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "No roofline" not in page
    assert "5014 GFLOP/s" in page
    assert "data sheet of Jetson Orin Nano 8 GB in 15W" in page
    print_comparison([(Path("a"), report), (Path("b"), msgspec.structs.replace(report, accelerator=None))])
    assert "NOT THE SAME MACHINE, MODE, BATCH OR SOFTWARE" in capsys.readouterr().out


def test_without_tensorrt_nothing_else_is_run_instead(bundle):
    pytest.importorskip("onnxruntime")
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        opened = open_party(bundle / "edge")
        with pytest.raises(MissingExtra, match="TensorRT is not installed"):
            TensorRTBackend("encoder", opened.onnx(opened.manifest.parts[0]), EngineOptions())
    else:
        pytest.skip("TensorRT is installed here")
