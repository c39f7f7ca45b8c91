"""PyTorch modules to single-file ONNX, checked by ONNX's checker."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from edge_sdk.errors import BackendError, needs_extra

from .defenses import SplitModel
from .wire import Wire

OPSET = 20
"""Highest that ONNX Runtime of JetPack 6's Python 3.10 and every supported TensorRT parse."""

BatchMode = Literal["static", "dynamic"]


class EdgeGraph(nn.Module):
    """The encoder as it ships: raw image in, wire dtype out.

    Takes uint8 ``(N, H, W, 3)``; scaling to [0, 1] and the axes' order are in the graph, so the device feeds pixels.
    Where the model has noise, its numbers from N(0, 1) are further inputs, one for each share: a graph's own random
    operator has a seed that can be guessed.
    """

    def __init__(self, model: SplitModel, wires: Sequence[Wire]) -> None:
        super().__init__()
        self.edge = model.edge
        self.noise = model.noise
        self.wires = tuple(wires)

    def forward(self, image: Tensor, drawn: list[Tensor] | None = None) -> tuple[Tensor, ...]:
        # To float first: TensorRT takes uint8 in nothing but a cast.
        shares = self.edge((image.float() / 255).permute(0, 3, 1, 2))
        shares = shares if isinstance(shares, tuple) else (shares,)
        if self.noise is not None:
            shares = self.noise(shares, drawn)
        return tuple(wire.pack(share) for wire, share in zip(self.wires, shares, strict=True))


class TailGraph(nn.Module):
    """A tail as it ships: one share in its wire dtype in, float32 logits out."""

    def __init__(self, tail: nn.Module, wire: Wire) -> None:
        super().__init__()
        self.tail = tail
        self.wire = wire

    def forward(self, share: Tensor) -> Tensor:
        logits: Tensor = self.tail(self.wire.unpack(share))
        return logits


class FusionGraph(nn.Module):
    """The fusion as it ships: every server's float32 logits, and which of them were received ``(N, K)``, in order."""

    def __init__(self, fusion: nn.Module) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, outputs: list[Tensor], received: Tensor) -> Tensor:
        logits: Tensor = self.fusion(outputs, received)
        return logits


def to_onnx(
    module: nn.Module,
    example: tuple[Tensor | list[Tensor], ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    batch: BatchMode = "dynamic",
) -> bytes:
    """Export a module in inference mode.

    Args:
        module: gives one output tensor or a tuple of them.
        example: its arguments, of batch 2 for a dynamic batch axis, of the wanted size for a static one.
        inputs: names.
        outputs: names.
        batch: whether the batch axis is open.

    Returns:
        The ONNX file's content, weights included.

    Raises:
        BackendError: the exporter or the checker refuses the module.
    """
    with needs_extra("export", "exporting a model"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401  (what torch.onnx needs)

    if module.training:
        raise ValueError("a module in training mode would be exported with its batch statistics")
    for chatty in ("torch.onnx._internal.exporter._registration", "onnx_ir._convenience"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    axis = {0: torch.export.Dim("batch")}
    shapes = tree_map(lambda _: axis, example) if batch == "dynamic" else None
    with warnings.catch_warnings(), _one_operator_table():
        warnings.simplefilter("ignore")  # of torch's own internals, nothing that a user could act on
        try:
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # torch raises many kinds, all meaning that this module cannot be exported
            raise BackendError(f"torch.onnx.export failed: {error}") from error
    if program is None:
        raise BackendError("torch.onnx.export gave no program")
    model = program.model_proto
    opset = {entry.domain: entry.version for entry in model.opset_import}.get("")
    if opset != OPSET:
        raise BackendError(f"asked for ONNX opset {OPSET}, got {opset}")
    _state_kernel_shapes(model)
    for node in model.graph.node:  # stack traces would carry the exporting machine's paths
        del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.metadata_props[:], model.graph.metadata_props[:]
    return checked_onnx(model)


def _state_kernel_shapes(model: Any) -> None:
    """In every convolution: onnxscript does so from 0.7.2 on, and TensorRT's parser before 10.4 (JetPack 6) needs it.

    Behind quantised weights that parser does not look at the weights' own shape.
    """
    import onnx

    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and all(attribute.name != "kernel_shape" for attribute in node.attribute):
            node.attribute.append(onnx.helper.make_attribute("kernel_shape", shapes[node.input[1]][2:]))


def checked_onnx(model: Any) -> bytes:
    """The content of an ONNX file, as ONNX's checker accepts it.

    Args:
        model: an ``onnx.ModelProto``.

    Raises:
        BackendError: the checker refuses it.
    """
    import onnx

    used = {node.domain for node in model.graph.node}
    for unused in [entry for entry in model.opset_import if entry.domain not in used]:  # the quantiser's, for plenty
        model.opset_import.remove(unused)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise BackendError(f"the exported model is not valid ONNX: {error}") from error
    content: bytes = model.SerializeToString(deterministic=True)
    return content


_tables: dict[int, Any] = {}


@contextmanager
def _one_operator_table() -> Iterator[None]:
    """torch.onnx builds its table of operators anew for every export, which takes half of the time: here, once.

    The table is no public part of torch: where it is not found, all is as without this.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        build, original = ONNXRegistry.from_torchlib, ONNXRegistry.__dict__["from_torchlib"]
    except (ImportError, AttributeError, KeyError):
        yield
        return

    def kept(opset_version: int) -> Any:
        if opset_version not in _tables:
            _tables[opset_version] = build(opset_version=opset_version)
        return _tables[opset_version]

    ONNXRegistry.from_torchlib = staticmethod(kept)  # type: ignore[assignment]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = original
