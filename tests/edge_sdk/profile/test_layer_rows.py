"""Costs beside times, of ONNX nodes and of engines' fused layers."""

from types import SimpleNamespace

import pytest

from edge_sdk.bundle import Cost, LayerCost, open_party
from edge_sdk.profile.layer_rows import layer_rows


def _part(layer_ms, gpu, kept=()):
    layers = tuple(
        LayerCost(name, op, flops, other, params, 10, (1, 4, 8, 8))
        for name, op, flops, other, params in (
            ("node_conv2d", "Conv", 100, 0, 7),
            ("node_relu", "Relu", 0, 5, 0),
            ("node_conv2d_1", "Conv", 300, 0, 9),
            ("node_view", "Reshape", 0, 0, 0),
        )
    )
    cost = Cost(flops=400, other_ops=5, num_params=16, weight_bytes=64, layers=layers)
    return SimpleNamespace(cost=cost, layer_ms=layer_ms, gpu=gpu, kept_in_fp32=list(kept))


def test_nodes_have_their_own_times():
    rows = layer_rows(_part({"node_conv2d": 1.0, "node_relu": 0.5, "node_conv2d_1": 2.5}, {}), 2, "fp32")
    assert [row.name for row in rows] == ["node_conv2d", "node_relu", "node_conv2d_1"]  # a view does nothing
    assert [row.flops for row in rows] == [200, 0, 600]
    assert [row.share for row in rows] == [0.25, 0.125, 0.625]
    assert rows[0].bytes == 4 * (7 + 20)
    assert rows[0].output == "4x8x8"


def test_an_engines_layer_has_the_costs_of_all_that_is_fused_in_it():
    times = {"node_conv2d + node_relu": 1.0, "Reformatting CopyNode for Output 0": 0.5}
    rows = {row.name: row for row in layer_rows(_part(times, {"enqueue_ms": None}), 1, "fp16")}
    fused = rows["node_conv2d + node_relu"]
    assert (fused.op, fused.flops, fused.num_params, fused.bytes) == ("Conv + Relu", 100, 7, 2 * (17 + 10))
    copied = rows["Reformatting CopyNode for Output 0"]
    assert (copied.op, copied.flops, copied.ms) == ("", 0, 0.5)
    left = rows["node_conv2d_1"]  # whose layer TensorRT has given a name of its own
    assert (left.flops, left.ms) == (300, None)
    assert sum(row.flops for row in rows.values()) == 400
    assert sum(row.share for row in rows.values() if row.share) == pytest.approx(1)


def test_onnx_runtimes_fused_layers_have_the_costs_of_the_node_that_they_name():
    """A node that is replaced by one of another type has a number behind its name, others the name of a tensor."""
    times = {"node_conv2d_token_75": 1.0, "InsertedCast_node_conv2d_1_nchwc": 2.0, "node_relu/Fusion/": 1.0}
    rows = {row.name: row for row in layer_rows(_part(times, {}), 1, "int8")}
    assert list(rows) == [*times, "node_conv2d_1"]
    assert (rows["node_conv2d_token_75"].op, rows["node_conv2d_token_75"].flops) == ("Conv", 100)
    assert rows["node_relu/Fusion/"].op == "Relu"
    tensors = rows["InsertedCast_node_conv2d_1_nchwc"]
    assert (tensors.op, tensors.flops, tensors.share) == ("", 0, 0.5)
    assert (rows["node_conv2d_1"].flops, rows["node_conv2d_1"].ms) == (300, None)


def test_no_node_counts_twice():
    """A copy to another format bears the name of the layer it is for, and a kernel may be one of several of a node."""
    layer = "node_conv2d + node_relu"
    copy, again = f"Reformatting CopyNode for Input Tensor 0 to {layer}", f"{layer} [second kernel]"
    rows = {row.name: row for row in layer_rows(_part({copy: 0.2, layer: 1.0, again: 0.1}, {"x": None}), 1, "fp16")}
    assert (rows[copy].op, rows[copy].flops, rows[copy].ms) == ("", 0, 0.2)
    assert (rows[layer].op, rows[layer].flops) == ("Conv + Relu", 100)
    assert (rows[again].flops, rows[again].ms) == (0, 0.1)
    assert sum(row.flops for row in rows.values()) == 400


def test_what_is_compiled_as_one_has_all_nodes_from_the_first_to_the_last_that_no_other_layer_names():
    times = {"{ForeignNode[node_conv2d...node_conv2d_1]}": 2.0, "node_relu": 0.5}
    rows = {row.name: row for row in layer_rows(_part(times, {"x": None}), 1, "fp32")}
    assert list(rows) == list(times)
    assert (rows["{ForeignNode[node_conv2d...node_conv2d_1]}"].flops, rows["node_relu"].op) == (400, "Relu")


def test_what_int8_keeps_in_float32_moves_as_many_bytes_as_there():
    rows = layer_rows(_part({}, {}, ["node_conv2d_1"]), 1, "int8")
    assert [row.bytes for row in rows if row.flops] == [7 + 10, 4 * (9 + 10)]


def test_what_is_no_product_stays_in_float32_in_an_int8_graph_and_not_in_a_float16_one():
    (relu,) = (row for row in layer_rows(_part({}, {}), 1, "int8") if row.op == "Relu")
    assert relu.bytes == 4 * 10
    (fused,) = (row for row in layer_rows(_part({"node_conv2d + node_relu": 1.0}, {"x": None}), 1, "int8") if row.ms)
    assert fused.bytes == 1 * (7 + 10) + 4 * 10
    (relu,) = (row for row in layer_rows(_part({}, {}), 1, "fp16") if row.op == "Relu")
    assert relu.bytes == 2 * 10


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_bytes_are_of_the_types_in_the_exported_graph(bundle, precision):
    """Every layer's own outputs, of a real bundle: as wide as the row takes them to be."""
    opened = open_party(bundle / "edge")
    (encoder,) = (part for part in opened.manifest.parts if part.placement == "edge")
    wide = _bytes_of_outputs(opened.onnx(encoder, precision))
    part = SimpleNamespace(cost=encoder.cost, layer_ms={}, gpu={}, kept_in_fp32=[])
    checked = 0
    for row in layer_rows(part, 1, precision):
        layer = next(layer for layer in encoder.cost.layers if layer.name == row.name)
        if row.name in wide:  # the others have lost their names
            assert row.bytes == wide[row.name] * layer.elements(1), row
            checked += 1
    assert checked > 40


def _bytes_of_outputs(model):
    """Of one number, by node; of one that is quantised at once, of what it is quantised to."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    taken = {node.input[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    products = {node.output[0] for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")}
    found = {}
    for node in graph.node:
        name = node.output[0]
        through = taken[name].output[0] if name in taken and name in products else name
        found[node.name] = onnx.helper.tensor_dtype_to_np_dtype(types[through]).itemsize
    return found
