"""A trained model as it ships: the graphs of the device and of the servers, and how their tensors are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from edge_sdk.errors import ConfigError, DataError
from edge_sdk.tensors import Array

from .checkpoint import Checkpoint
from .defenses import SplitModel
from .onnx import BatchMode, EdgeGraph, TailGraph, to_onnx
from .wire import Wire, WireDtype

RECEIVED = "received"
NOISE = "noise"


class TensorNames(NamedTuple):
    """Of the tensors and tails of a placement graph, one for each server."""

    shares: list[str]
    tails: list[str]
    outputs: list[str]
    noises: list[str]

    @classmethod
    def of(cls, count: int) -> TensorNames:
        """For this many servers."""
        if count == 1:
            return cls(["features"], ["tail"], ["logits"], [NOISE])
        return cls(*([f"{stem}{i}" for i in range(count)] for stem in ("share_", "tail", "logits_", f"{NOISE}_")))


class ShippedGraphs(NamedTuple):
    """A trained model, what each share travels as, and the graphs that go to the device and to the servers."""

    model: SplitModel
    wires: list[Wire]
    edge: EdgeGraph
    tails: list[TailGraph]

    @property
    def names(self) -> TensorNames:
        """Of the tensors that join them."""
        return TensorNames.of(len(self.tails))

    def draw_noise(self, images: Tensor) -> list[Tensor]:
        """Standard normal numbers for a batch ``(N, H, W, 3)``, from torch's generator; none for a model without."""
        if self.model.noise is None:
            return []
        with torch.no_grad():
            shares = self.model.shares(images[:1].permute(0, 3, 1, 2).float() / 255)  # for their shapes
        return [torch.randn(len(images), *share.shape[1:]) for share in shares]

    def named(self, noise: Sequence[Tensor]) -> dict[str, Array]:
        """Noise as the exported encoder takes it: by the names of its inputs."""
        return {name: each.numpy() for name, each in zip(self.names.noises, noise, strict=False)}

    def encoder_onnx(self, image_size: int, batch: BatchMode) -> bytes:
        """The encoder's file: the image and, for a model with noise, its numbers in; one tensor a share out."""
        example = torch.zeros(2 if batch == "dynamic" else 1, image_size, image_size, 3, dtype=torch.uint8)
        drawn = self.draw_noise(example)
        arguments = (example, drawn) if drawn else (example,)
        inputs = ["image", *self.names.noises[: len(drawn)]]
        return to_onnx(self.edge, arguments, inputs, self.names.shares, batch)


def shipped_graphs(checkpoint: Checkpoint, wire_dtype: WireDtype, key: bytes | None = None) -> ShippedGraphs:
    """What is exported, and what an audit attacks: one and the same.

    Args:
        checkpoint: trained.
        wire_dtype: of the features that leave the device.
        key: of a user, for a keyed model; without one its entries are dealt as anybody can tell.

    Raises:
        ConfigError: a key for a model that has no use for one.
        DataError: uint8 is asked of a checkpoint without feature ranges.
    """
    model = checkpoint.build()
    if key is not None:
        if not (keyed := keyed_modules(model)):
            raise ConfigError("this model was not trained for keys (--set keyed=true); export it without --key-file")
        for module in keyed:
            module.use_key(key)
    wires = _wires(checkpoint, wire_dtype, len(model.tails))
    edge = EdgeGraph(model, wires).eval()
    tails = [TailGraph(tail, wire).eval() for tail, wire in zip(model.tails, wires, strict=True)]
    return ShippedGraphs(model, wires, edge, tails)


def keyed_modules(model: SplitModel) -> list[Any]:
    """What deals features out by a user's key."""
    return [module for module in model.modules() if getattr(module, "keyed", False)]


def _wires(checkpoint: Checkpoint, dtype: WireDtype, count: int) -> list[Wire]:
    if dtype != "uint8":
        return [Wire(dtype)] * count
    ranges = checkpoint.feature_ranges
    if len(ranges) != count:
        raise DataError("this checkpoint has no feature ranges, which uint8 features need; train it again")
    return [Wire(dtype, low, high) for low, high in ranges]


def source(name: str) -> Literal["data", "normal", "received"]:
    """Where the runtime takes an input from."""
    if name == RECEIVED:
        return "received"
    return "normal" if name.partition("_")[0] == NOISE else "data"
