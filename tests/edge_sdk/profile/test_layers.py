"""Times of layers by ONNX Runtime's profiler."""

import numpy as np
import pytest

from edge_sdk.errors import BackendError
from edge_sdk.profile.layers import layer_times

onnx = pytest.importorskip("onnx")


FEEDS = {"x": np.ones((2, 16, 8), np.float32)}


def _model():
    """What the library fuses at every level but none: a linear layer of a transformer, and a transposed product."""
    from onnx import TensorProto, helper, numpy_helper

    def weight(name, *shape):
        return numpy_helper.from_array(np.ones(shape, np.float32), name)

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"], "node_matmul"),
        helper.make_node("Add", ["product", "b"], ["sum"], "node_add"),
        helper.make_node("ReduceMean", ["sum", "axes"], ["mean"], "node_mean", keepdims=0),
        helper.make_node("Transpose", ["v"], ["turned"], "node_transpose", perm=[1, 0]),
        helper.make_node("Gemm", ["mean", "turned"], ["y"], "node_gemm"),
        helper.make_node("Identity", ["y"], ["z"], "node_identity"),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 16, 8))],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ("N", 4))],
        [weight("w", 8, 8), weight("b", 8), weight("v", 4, 8), numpy_helper.from_array(np.array([1]), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_every_node_has_its_own_time_by_its_own_name():
    model = _model()
    times = layer_times(model.SerializeToString(), FEEDS, fused=False, runs=3, num_threads=1)
    assert set(times) == {node.name for node in model.graph.node}
    assert all(took >= 0 for took in times.values())


def test_fused_layers_are_those_of_the_graph_that_runs():
    model = _model()
    times = layer_times(model.SerializeToString(), FEEDS, fused=True, runs=3, num_threads=1)
    assert times
    assert all(took >= 0 for took in times.values())
    assert not {"node_transpose", "node_identity"} & set(times)  # fused into the product, and of no effect


def test_what_the_library_refuses_is_said():
    with pytest.raises(BackendError, match="cannot profile the model"):
        layer_times(b"no model", {}, fused=True)
