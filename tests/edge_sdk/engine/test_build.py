"""Real engines, built by TensorRT for RTX without a GPU; nothing here runs one."""

import onnx
import pytest
from onnx import TensorProto, helper

from edge_sdk.bundle import open_party, parties
from edge_sdk.engine.build import EngineOptions, build_engine
from edge_sdk.errors import BackendError, ConfigError, DeviceError

MODERN = ("sm_80", "sm_86", "sm_89", "sm_120")


def _model(*nodes, shape=("batch", 3, 8, 8)):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    graph = helper.make_graph(list(nodes), "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


RELU = helper.make_node("Relu", ["x"], ["y"], name="the_relu")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("party", ["edge", "server0"])
def test_every_part_builds_for_every_gpu_in_every_precision(rtx, bundle, party, precision):
    opened = open_party(bundle / party)
    part = opened.manifest.parts[0]
    targets = ("sm_75", *MODERN) if precision == "fp16" else MODERN
    options = EngineOptions(precision=precision, max_batch=4, targets=targets)
    content, layers = build_engine(opened.onnx(part, precision), options, rtx)
    assert content.startswith(b"vtrt")
    convolutions = [layer for layer in layers if layer.kind == "CONVOLUTION"]
    model = onnx.load_from_string(opened.onnx(part, precision))
    assert len(convolutions) == sum(node.op_type == "Conv" for node in model.graph.node)
    if precision == "fp16":
        assert {layer.dtype for layer in convolutions} == {"HALF"}
    assert ("QUANTIZE" in {layer.kind for layer in layers}) == (precision == "int8")


def test_several_servers_parts_build(rtx, shares_bundle):
    for party in ("edge", "server0"):
        opened = open_party(shares_bundle / party)
        for part in opened.manifest.parts:
            if part.file is not None:
                assert build_engine(opened.onnx(part), EngineOptions(targets=("sm_89",)), rtx)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("defense", "backbone"),
    [
        *(("none", backbone) for backbone in ("resnet18", "vgg16", "vit")),
        *(("siftfunnel", backbone) for backbone in ("resnet18", "vgg16")),
        *(("privdfs", backbone) for backbone in ("resnet18", "vit")),
    ],
)
def test_every_backbone_builds(rtx, make_checkpoint, tmp_path, defense, backbone):
    from export.parity import parity_images
    from export.write_bundle import export_bundle

    out = tmp_path / "b"
    export_bundle(make_checkpoint(defense, backbone), out, images=parity_images(None, 32), precisions=("fp16",))
    for folder in parties(out):
        opened = open_party(folder)
        for part in opened.manifest.parts:
            if part.file is not None:
                for precision in ("fp32", *part.variants):
                    options = EngineOptions(precision=precision, targets=MODERN)
                    assert build_engine(opened.onnx(part, precision), options, rtx)[1]


def test_layers_are_those_of_the_graph(rtx):
    _, (layer,) = build_engine(_model(RELU), EngineOptions(targets=("sm_89",)), rtx)
    assert (layer.kind, layer.onnx_node, layer.dtype) == ("ACTIVATION", "the_relu", "FLOAT")
    assert layer.shape == (None, 3, 8, 8)


def test_an_unsupported_operator_is_named_with_its_node(rtx):
    determinant = helper.make_node("Det", ["x"], ["y"], name="the_determinant")
    with pytest.raises(BackendError, match=r"'the_determinant' \(Det\): UNSUPPORTED_NODE"):
        build_engine(_model(determinant), EngineOptions(targets=("sm_89",)), rtx)


def test_what_fails_in_the_build_itself_says_why(rtx, bundle):
    opened = open_party(bundle / "server0")
    with pytest.raises(BackendError, match=r"node_linear.*FP32 GEMM is not supported"):
        build_engine(opened.onnx(opened.manifest.parts[0]), EngineOptions(targets=("sm_75",)), rtx)


def test_a_build_short_of_memory_says_what_to_do(rtx, bundle):
    opened = open_party(bundle / "edge")
    options = EngineOptions(targets=("sm_89",), max_batch=64, workspace_bytes=1 << 10)
    with pytest.raises(DeviceError, match=r"workspace limit.*; close the desktop"):
        build_engine(opened.onnx(opened.manifest.parts[0]), options, rtx)


def test_a_library_that_would_read_the_graph_wrongly_is_refused(rtx):
    flags = type("NetworkDefinitionCreationFlag", (), {"EXPLICIT_BATCH": 0})
    old = rtx._replace(module=type("tensorrt", (), {"NetworkDefinitionCreationFlag": flags}), version="8.6.2")
    with pytest.raises(BackendError, match=r"8\.6\.2 reads ONNX up to opset 17.*TensorRT 10\.0 is the oldest"):
        build_engine(b"", EngineOptions(), old)


def test_a_later_build_does_not_repeat_an_earlier_ones_errors(rtx):
    with pytest.raises(BackendError):
        build_engine(b"no model", EngineOptions(targets=("sm_89",)), rtx)
    with pytest.raises(BackendError) as failed:
        build_engine(_model(helper.make_node("Det", ["x"], ["y"])), EngineOptions(targets=("sm_89",)), rtx)
    assert "no model" not in str(failed.value)
    assert "deserialize" not in str(failed.value)


def test_a_jetson_is_no_target(rtx):
    with pytest.raises(ConfigError, match=r"no target sm_87; it has .*sm_89.*built on the Jetson"):
        build_engine(_model(RELU), EngineOptions(targets=("sm_87",)), rtx)


def test_a_fixed_batch_is_not_stretched(rtx):
    fixed = _model(RELU, shape=(1, 3, 8, 8))
    assert build_engine(fixed, EngineOptions(max_batch=8, targets=("sm_89",)), rtx)[1][0].shape == (1, 3, 8, 8)
    with pytest.raises(ConfigError, match="batch 4 alone, not for 2"):
        build_engine(_model(RELU, shape=(4, 3, 8, 8)), EngineOptions(max_batch=2, targets=("sm_89",)), rtx)


@pytest.mark.parametrize("changes", [{"max_batch": 0}, {"workspace_bytes": 0}])
def test_impossible_options_are_refused(changes):
    with pytest.raises(ConfigError, match="must be positive, got 0"):
        EngineOptions(**changes)
