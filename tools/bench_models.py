"""Models to measure servers with, as a bundle's server folder each: what a server adds does not depend on training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import GraphProto, TensorProto, helper, numpy_helper

from edge_sdk.bundle import FORMAT_VERSION, Manifest, bundle_id, write_bundle
from export.placement import read_part


def tiny(work: Path) -> Path:
    """One linear layer, 3072 to 10, so that the server itself is seen."""
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 3072])
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["features", "weights"], ["logits"], name="linear")],
        "tiny",
        [features],
        [_logits()],
        [_weights("weights", 3072, 10)],
    )
    return _write(work / "tiny", graph)


def convolutional(work: Path) -> Path:
    """Six 3x3 convolutions over features 12x16x16: 0.40 GFLOP and 2.0 M parameters a row, little gained by batching."""
    nodes, weights, last, before = [], [], "features", 12
    for i, (width, pooled) in enumerate([(128, 0), (128, 0), (256, 1), (256, 0), (256, 1), (160, 0)]):
        weights.append(_weights(f"kernel{i}", width, before, 3, 3))
        nodes.append(helper.make_node("Conv", [last, f"kernel{i}"], [f"conv{i}"], name=f"conv{i}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"conv{i}"], [f"relu{i}"], name=f"relu{i}"))
        last, before = f"relu{i}", width
        if pooled:
            nodes.append(
                helper.make_node("MaxPool", [last], [f"pool{i}"], name=f"pool{i}", kernel_shape=[2, 2], strides=[2, 2])
            )
            last = f"pool{i}"
    weights.append(_weights("classifier", before, 10))
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["mean"], name="mean"),
        helper.make_node("Flatten", ["mean"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "classifier"], ["logits"], name="linear"),
    ]
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 12, 16, 16])
    return _write(work / "convolutional", helper.make_graph(nodes, "convolutional", [features], [_logits()], weights))


BUILT_IN = {"tiny": tiny, "convolutional": convolutional}
"""Name to what writes it into a folder and says where."""


def _logits() -> object:
    return helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])


def _weights(name: str, *shape: int) -> TensorProto:
    fan_in = np.prod(shape[1:]) if len(shape) > 2 else shape[0]
    values = np.random.default_rng(0).standard_normal(shape) * np.sqrt(2 / fan_in)
    return numpy_helper.from_array(values.astype(np.float32), name)


def _write(out: Path, graph: GraphProto) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    part = read_part("tail", "server0", model)
    files = {"tail.onnx": model}
    manifest = Manifest(
        format_version=FORMAT_VERSION, bundle_id=bundle_id(files, {}), party="server0", parts=(part,), defense="none"
    )
    write_bundle(out, {"server0": manifest}, {"server0": files})
    return out / "server0"
