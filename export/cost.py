"""FLOPs, parameters and bytes of an ONNX model, layer by layer, from its graph.

One convention everywhere: 1 multiply-accumulate = 2 FLOPs, counted in convolutions and matrix products, as torch's
FlopCounterMode and fvcore (times 2) do. Everything else is counted apart as ``other_ops``: one for each element an
operator gives, or for a reduction or pooling, takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import onnx
from onnx import numpy_helper, shape_inference

from edge_sdk.bundle import Cost, LayerCost
from edge_sdk.errors import BackendError

_FREE = {"Cast", "Concat", "Constant", "Flatten", "Gather", "Identity", "Reshape", "Shape", "Slice", "Split",
         "Squeeze", "Transpose", "Unsqueeze"}  # fmt: skip
_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_UNKNOWN = {"Attention", "ConvInteger", "DeformConv", "Einsum", "GRU", "LSTM", "MatMulInteger", "QLinearConv",
            "QLinearMatMul", "RNN"}  # fmt: skip
"""Products whose FLOPs nothing here counts: an error, where a 0 would look like a count."""
_BY_INPUT = {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMean", "ReduceSum"}


def count_cost(model: bytes) -> Cost:
    """Cost of one sample.

    Raises:
        BackendError: a convolution's or product's shape cannot be inferred, or an operator holds a sub-graph.
    """
    graph = shape_inference.infer_shapes(_for_one(model), data_prop=True).graph
    shapes = {value.name: _shape(value) for value in (*graph.value_info, *graph.input, *graph.output)}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    shapes.update({name: list(tensor.dims) for name, tensor in weights.items()})
    counted: set[str] = set()
    layers = []
    for node in graph.node:
        own = [name for name in node.input if name in weights and name not in counted]
        counted.update(own)
        floats = [weights[name] for name in own if weights[name].data_type in _FLOATS]
        layers.append(
            LayerCost(
                name=node.name,
                op=node.op_type,
                flops=_flops(node, shapes),
                other_ops=_other_ops(node, shapes),
                num_params=sum(prod(tensor.dims) for tensor in floats),
                activation_elements=sum(_elements(shapes.get(name)) for name in _activations(node, weights)),
                output_shape=tuple(shapes.get(node.output[0], ())),
            )
        )
    return Cost(
        flops=sum(layer.flops for layer in layers),
        other_ops=sum(layer.other_ops for layer in layers),
        num_params=sum(layer.num_params for layer in layers),
        weight_bytes=weight_bytes(graph),
        layers=tuple(layers),
    )


def _for_one(model: bytes) -> onnx.ModelProto:
    """The model with its batch axis closed: an open one is lost where it is multiplied with another."""
    loaded = onnx.load_model_from_string(model)
    del loaded.graph.value_info[:]  # of the open axis
    for value in (*loaded.graph.input, *loaded.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = 1
    return loaded


def weight_bytes(graph: onnx.GraphProto) -> int:
    """Of all constants in a graph."""
    return sum(numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer)


_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    """Sizes, any that is unknown as -1."""
    return [d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim]


def _flops(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute):
        raise BackendError(f"node {node.name!r}: {node.op_type} holds a sub-graph, whose cost cannot be counted")
    if node.op_type not in _PRODUCTS | _UNKNOWN:
        return 0
    known = [shapes.get(name, [-1]) for name in (*node.input[:2], node.output[0])]
    if any(size < 0 for shape in known for size in shape) or node.op_type in _UNKNOWN:
        raise BackendError(f"node {node.name!r}: the cost of this {node.op_type} cannot be counted, shapes {known}")
    a, b, out = known
    if node.op_type == "Conv":  # weight (out, in / groups, kh, kw)
        return 2 * prod(out) * prod(b[1:])
    if node.op_type == "ConvTranspose":  # weight (in, out / groups, kh, kw): every input element meets a kernel
        return 2 * prod(a) * prod(b[1:])
    if node.op_type == "Gemm":
        inner = a[0] if _attribute(node, "transA") else a[1]
        return 2 * prod(out) * inner
    return 2 * prod(out) * a[-1]


def _other_ops(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    if node.op_type in _FREE | _PRODUCTS:
        return 0
    shape = shapes.get(node.input[0] if node.op_type in _BY_INPUT else node.output[0], [])
    return prod(shape) if shape and min(shape) >= 0 else 0


def _activations(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> list[str]:
    return [name for name in (*dict.fromkeys(node.input), *node.output) if name and name not in weights]


def _elements(shape: list[int] | None) -> int:
    """Of a tensor; 0 where its shape is unknown."""
    return prod(shape) if shape is not None and min(shape, default=1) >= 0 else 0


def _attribute(node: onnx.NodeProto, name: str) -> Any:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)
