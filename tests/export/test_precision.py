from dataclasses import replace

import numpy as np
import onnx
import pytest

from edge_sdk.bundle import open_party
from edge_sdk.errors import ConfigError
from export.checkpoint import load_checkpoint
from export.parity import parity_images
from export.precision import to_fp16
from export.quantize import AGREEMENT
from export.write_bundle import export_bundle
from export.zoo import zoo_model

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def _kinds(model):
    return {tensor.data_type for tensor in onnx.load_from_string(model).graph.initializer}


def test_float16_changes_the_weights_and_no_input_or_output(bundle):
    opened = open_party(bundle / "edge")
    part = opened.manifest.parts[0]
    plain, half = opened.onnx(part), opened.onnx(part, "fp16")
    assert to_fp16(plain) == half
    assert HALF in _kinds(half)
    assert FLOAT not in _kinds(half)
    graphs = [onnx.load_from_string(model).graph for model in (plain, half)]
    for side in ("input", "output"):
        first, second = ([(v.name, v.type) for v in getattr(graph, side)] for graph in graphs)
        assert first == second
    assert len(half) < 0.7 * len(plain)
    assert part.runs_in("fp16") == "fp16"
    assert 2 * part.weight_bytes("fp16") == pytest.approx(part.weight_bytes("fp32"), rel=0.02)
    assert part.weight_bytes("int8") < part.weight_bytes("fp32")


def test_int8_is_symmetric_q_dq_around_every_product(bundle):
    opened = open_party(bundle / "server0")
    graph = onnx.load_from_string(opened.onnx(opened.manifest.parts[0], "int8")).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") > 0
    assert kinds.count("DequantizeLinear") > kinds.count("QuantizeLinear")  # weights are stored quantised
    zeros = [tensor for tensor in graph.initializer if tensor.name.endswith("_zero_point")]
    assert zeros
    assert all(not onnx.numpy_helper.to_array(tensor).any() for tensor in zeros)
    assert all(tensor.data_type == onnx.TensorProto.INT8 for tensor in zeros)
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert convolutions
    for node in convolutions:  # TensorRT's parser before 10.4 does not find it in quantised weights
        assert [list(a.ints) for a in node.attribute if a.name == "kernel_shape"]


def test_the_manifest_says_how_often_the_answers_are_the_same(bundle):
    parity = open_party(bundle / "edge").manifest.provenance["parity"]
    assert set(parity) == {"fp32", "fp16", "int8"}
    assert all(record["same_answer"] > 0.9 for record in parity.values())
    assert parity["int8"]["kept_in_fp32"] == []


def test_layers_that_8_bits_would_break_stay_in_float32(image_folder, tmp_path):
    """One channel three hundred times as large, and the next layer's weights for it as small: the same function."""
    checkpoint = load_checkpoint(zoo_model("none", "cnn"))  # an untrained one would answer one class to everything
    weights = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
    norm = [name for name in weights if name.startswith("edge.") and name.endswith("running_var")][-1]
    stem = norm.removesuffix("running_var")
    for name in ("weight", "bias"):
        weights[stem + name][0] *= 300
    first = next(name for name in weights if name.startswith("tails.0.") and weights[name].dim() == 4)
    weights[first][:, 0] /= 300
    images = parity_images(str(image_folder), 32)
    loud = replace(checkpoint, weights=weights)
    parity = export_bundle(loud, tmp_path / "b", images=images, precisions=("int8",), calibration=images.pixels)
    kept = parity["int8"]["kept_in_fp32"]
    assert any(name.startswith("tail/") for name in kept)
    assert parity["int8"]["same_answer"] >= AGREEMENT
    graph = onnx.load(tmp_path / "b" / "server0" / "tail.int8.onnx").graph
    assert "QuantizeLinear" in {node.op_type for node in graph.node}  # the others are quantised all the same


def test_int8_needs_images(make_checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="int8 needs images to calibrate on"):
        export_bundle(make_checkpoint("none"), tmp_path / "b", images=parity_images(None, 32), precisions=("int8",))
    assert not (tmp_path / "b").exists()


def test_a_precision_that_was_not_exported_is_named(other_bundle):
    from edge_sdk.errors import BundleError

    opened = open_party(other_bundle / "edge")
    with pytest.raises(BundleError, match=r"exported in fp32, not in fp16; export it with --precision fp16"):
        opened.onnx(opened.manifest.parts[0], "fp16")


def test_variants_are_verified_as_every_file(bundle, tmp_path):
    import shutil

    from edge_sdk.errors import BundleError

    folder = shutil.copytree(bundle / "edge", tmp_path / "edge")
    data = np.fromfile(folder / "encoder.int8.onnx", np.uint8)
    data[100] ^= 1
    data.tofile(folder / "encoder.int8.onnx")
    with pytest.raises(BundleError, match=r"encoder\.int8\.onnx was altered"):
        open_party(folder)
