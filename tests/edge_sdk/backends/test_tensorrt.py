"""TensorRT on a real GPU; has to be asked for (-m gpu), and has never run so far."""

import numpy as np
import pytest

from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.backends.tensorrt import TensorRTBackend
from edge_sdk.bundle import open_party
from edge_sdk.engine.build import EngineOptions
from edge_sdk.errors import BackendError, MissingExtra
from edge_sdk.profile.feeds import random_feeds


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
