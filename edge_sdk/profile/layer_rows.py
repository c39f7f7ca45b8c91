"""Every layer's cost beside its time: ONNX nodes, or what an engine or ONNX Runtime fuses some of those to."""

from __future__ import annotations

import re
from typing import NamedTuple

from ..bundle import INT8_OPERATORS, LayerCost, Precision
from .devices import ELEMENT_BYTES
from .encoder import PartProfile

__all__ = ["LayerRow", "are_fused", "bytes_note", "layer_rows"]


class LayerRow(NamedTuple):
    """One layer of a part, for one run of a batch.

    Attributes:
        name: of the ONNX node, or of the layer that fuses some.
        op: ONNX operators, of what a layer fuses; empty where it names no node, and its cost is not known.
        output: shape without the batch, of the last of them.
        flops: of the batch.
        num_params: of them.
        bytes: that the layers read and write, each by itself, in the types that the exported graph states.
        ms: median, None where it is not known.
        share: of the sum of all times.
    """

    name: str
    op: str
    output: str
    flops: int
    num_params: int
    bytes: int
    ms: float | None
    share: float | None


def layer_rows(part: PartProfile, batch: int, precision: Precision) -> list[LayerRow]:
    """Every layer that does something or takes time.

    TensorRT names a fused layer after the ONNX nodes in it, where it names them at all, ONNX Runtime after one of them
    or a tensor; a layer with no node's name has a time and no cost, and nodes that no layer names stand after them with
    a cost and no time.
    """
    times, whole = part.layer_ms, sum(part.layer_ms.values())
    by_name = {layer.name: layer for layer in part.cost.layers}
    named = _nodes_of_layers(list(times), list(by_name)) if are_fused(part, precision) else {}
    told = {node for nodes in named.values() for node in nodes}
    named |= {name: [name] for name in by_name if name not in told and name not in named}
    rows = []
    for name, nodes in named.items():
        layers, took = [by_name[node] for node in nodes], times.get(name)
        if took or any(layer.flops or layer.other_ops for layer in layers):
            moved = sum(layer.elements(batch) * _element_bytes(layer, part, precision) for layer in layers)
            rows.append(_row(name, layers, took, whole, batch, moved))
    return rows


def are_fused(part: PartProfile, precision: Precision) -> bool:
    """Whether the times are of layers as they were fused to run; a CPU's in float32 are of ONNX nodes."""
    return bool(part.layer_ms) and (bool(part.gpu) or precision != "fp32")


def bytes_note(precision: Precision) -> str:
    """What the rows' bytes are, for people: an engine may fuse more, and move less, than the graph states."""
    types = ", of 1-byte numbers in quantised products and float32 elsewhere" if precision == "int8" else ""
    return f"bytes as the graph states them, layer by layer{types}; what is fused moves less"


def _element_bytes(layer: LayerCost, part: PartProfile, precision: Precision) -> int:
    """All of a float16 graph is float16; of an int8 one, only products are in 8 bits, and not all of them."""
    in_float = precision == "int8" and (layer.op not in INT8_OPERATORS or layer.name in part.kept_in_fp32)
    return ELEMENT_BYTES["fp32" if in_float else precision]


COPY = "Reformatting CopyNode"
"""How TensorRT's copies to another format begin; the layer that they are for follows."""

RANGE = "{ForeignNode["
"""What stands before the first and the last node of a part of the graph that TensorRT compiles as one."""

ANEW = r"(?:_token_\d+)?"
"""What ONNX Runtime adds to the name of a node that it replaces by one of another type."""


def _nodes_of_layers(layers: list[str], nodes: list[str]) -> dict[str, list[str]]:
    """The nodes of each fused layer; each node belongs to one layer at most.

    Args:
        layers: names.
        nodes: names, in the graph's order.
    """
    if not nodes:
        return {layer: [] for layer in layers}
    known = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, sorted(nodes, key=len)[::-1]))}){ANEW}(?!\w)")
    found = {layer: [] if layer.startswith(COPY) else list(dict.fromkeys(known.findall(layer))) for layer in layers}
    free, owned = set(nodes), {}
    for layer, named in sorted(found.items(), key=lambda each: RANGE in each[0]):  # what is named goes before a range
        if RANGE in layer and named:
            places = [nodes.index(name) for name in named]
            named = nodes[min(places) : max(places) + 1]
        owned[layer] = [name for name in named if name in free]
        free.difference_update(named)
    return {layer: owned[layer] for layer in layers}


def _row(name: str, layers: list[LayerCost], took: float | None, whole: float, batch: int, moved: int) -> LayerRow:
    return LayerRow(
        name=name,
        op=" + ".join(layer.op for layer in layers),
        output="x".join(str(size) for size in layers[-1].output_shape[1:]) if layers else "",
        flops=sum(layer.flops for layer in layers) * batch,
        num_params=sum(layer.num_params for layer in layers),
        bytes=moved,
        ms=took,
        share=took / whole if took is not None and whole else None,
    )
