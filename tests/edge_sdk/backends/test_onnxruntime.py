from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_inference_collection import Session

from edge_sdk.backends import Execution, open_backend
from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.backends.providers import Provider, tensorrt_provider
from edge_sdk.bundle import open_party
from edge_sdk.errors import BackendError, DeviceError
from edge_sdk.profile.feeds import random_feeds
from edge_sdk.tensors import TensorSpec


def _model(kind=TensorProto.FLOAT, operator="Identity"):
    x, y = (helper.make_tensor_value_info(name, kind, ["batch", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (TensorProto.FLOAT, "FP32"), (TensorProto.FLOAT16, "FP16"), (TensorProto.DOUBLE, "FP64"),
        (TensorProto.UINT8, "UINT8"), (TensorProto.INT64, "INT64"), (TensorProto.BOOL, "BOOL"),
    ],
)  # fmt: skip
def test_every_dtype_comes_through(kind, dtype):
    with OnnxRuntimeBackend(_model(kind)) as backend:
        assert backend.inputs == (TensorSpec("x", dtype, (None, 3)),)
        x = np.ones((2, 3), backend.inputs[0].numpy_dtype)
        np.testing.assert_array_equal(backend.run({"x": x})["y"], x)


def test_what_is_no_model_is_refused():
    with pytest.raises(BackendError, match="refuses the model"):
        OnnxRuntimeBackend(b"no model")
    with pytest.raises(BackendError, match="refuses the model"):
        OnnxRuntimeBackend(_model(operator="NoSuchOperator"))


def test_a_type_the_protocol_cannot_carry_is_refused():
    with pytest.raises(BackendError, match="cannot carry"):
        OnnxRuntimeBackend(_model(TensorProto.STRING))


def test_a_failing_run_is_an_error_of_ours():
    with OnnxRuntimeBackend(_model()) as backend, pytest.raises(BackendError, match="ONNX Runtime failed"):
        backend.run({"x": np.ones((2, 4), np.float32)})


def _leaving(operator, *inputs):
    """A model for a provider that runs none of it: Azure's stands in every build for the CPU."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 3, 3]) for name in "xy")
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 1, 1], [2.0])
    graph = helper.make_graph([helper.make_node(operator, ["x", *inputs], ["y"], "layer")], "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


needs_azure = pytest.mark.skipif(
    "AzureExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="this ONNX Runtime has no such provider",
)


@needs_azure
@pytest.mark.skipif(not hasattr(Session, "get_provider_graph_assignment_info"), reason="needs ONNX Runtime 1.24")
def test_layers_that_a_provider_leaves_to_the_cpu_are_not_run_there():
    azure = Provider("AzureExecutionProvider")
    with pytest.raises(BackendError, match="AzureExecutionProvider leaves 1 layers to the CPU, such as layer"):
        OnnxRuntimeBackend(_leaving("Conv", "w"), provider=azure)
    with OnnxRuntimeBackend(_leaving("Relu"), provider=azure) as backend:  # arithmetic may be left
        assert backend.run({"x": -np.ones((1, 1, 3, 3), np.float32)})["y"].max() == 0


@needs_azure
@pytest.mark.parametrize("operator", ["Relu", "Conv"])
def test_an_onnx_runtime_that_does_not_say_what_it_left_is_refused(monkeypatch, operator):
    monkeypatch.delattr(Session, "get_provider_graph_assignment_info", raising=False)  # as before 1.24
    model = _leaving(operator, *["w"] * (operator == "Conv"))
    with pytest.raises(BackendError, match=r"cannot tell whether that has layers; 1\.24 or later can"):
        OnnxRuntimeBackend(model, provider=Provider("AzureExecutionProvider"))


def test_threads_are_taken():
    onnx.checker.check_model(_model())
    with OnnxRuntimeBackend(_model(), num_threads=1) as backend:
        assert backend.run({"x": np.zeros((1, 3), np.float32)})["y"].shape == (1, 3)


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_gpu_that_is_not_there_is_not_replaced_by_the_cpu(bundle, monkeypatch, tmp_path, backend):
    monkeypatch.setenv("EDGESDK_CACHE", str(tmp_path))
    if len(onnxruntime.get_available_providers()) > 2:
        pytest.skip("this ONNX Runtime has a GPU's providers")
    party = open_party(bundle / "server0")
    with pytest.raises(DeviceError, match="onnxruntime-gpu in place of onnxruntime"):
        open_backend(party.manifest.parts[0], party, Execution(backend))


def test_tensorrt_is_told_the_batches_it_builds_for(bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("EDGESDK_CACHE", str(tmp_path / "cache"))
    part = open_party(bundle / "server0").manifest.parts[0]
    provider = tensorrt_provider(part, b"some weights", Execution("onnxruntime-tensorrt", "int8", max_batch=16))
    assert provider.max_batch == 16
    assert provider.options["trt_profile_min_shapes"] == "features:1x12x8x8"
    assert provider.options["trt_profile_max_shapes"] == "features:16x12x8x8"
    assert provider.options["trt_int8_enable"] == "1"
    folder = provider.options["trt_engine_cache_path"]
    assert folder.startswith(str(tmp_path / "cache" / "onnxruntime-tensorrt"))
    assert Path(folder).is_dir()
    fixed = msgspec.structs.replace(part, inputs=(TensorSpec("features", "FP32", (2, 12, 8, 8)),), variants={})
    provider = tensorrt_provider(fixed, b"other weights", Execution("onnxruntime-tensorrt", "int8", max_batch=16))
    assert provider.options["trt_engine_cache_path"] != folder  # ONNX Runtime's own name for an engine leaves them out
    assert provider.max_batch is None
    assert not any("profile" in name or "int8" in name for name in provider.options)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_gpus_provider_gives_what_the_cpu_gives(bundle, monkeypatch, tmp_path, backend):
    monkeypatch.setenv("EDGESDK_CACHE", str(tmp_path))
    party = open_party(bundle / "server0")
    part = party.manifest.parts[0]
    feeds = random_feeds(part.inputs, 3)
    with (
        open_backend(part, party, Execution()) as cpu,
        open_backend(part, party, Execution(backend, max_batch=4)) as gpu,
    ):
        np.testing.assert_allclose(gpu.run(feeds)["logits"], cpu.run(feeds)["logits"], atol=2e-3)
