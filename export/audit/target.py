"""The model under attack, as it ships."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.errors import ConfigError

from ..checkpoint import Checkpoint
from ..defenses import Unpacking
from ..onnx import to_onnx
from ..wire import WireDtype
from ..write_bundle import shipped_graphs
from .attacks.base import Features


class Target:
    """A trained model and the ONNX encoder that export writes of it.

    Args:
        checkpoint: trained.
        wire_dtype: of the features.
        num_threads: of ONNX Runtime; None lets it choose.

    Raises:
        DataError: uint8 is asked of a checkpoint without feature ranges.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, wire_dtype: WireDtype = "float32", num_threads: int | None = None
    ) -> None:
        graphs = shipped_graphs(checkpoint, wire_dtype)
        self.checkpoint, self.wire_dtype = checkpoint, wire_dtype
        self.num_servers = len(graphs.tails)
        self._names = [f"share_{k}" for k in range(self.num_servers)]
        size = checkpoint.image_size
        example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
        self._encoder = OnnxRuntimeBackend(to_onnx(graphs.edge, example, ["image"], self._names), num_threads)
        self._wires = graphs.wires
        self._model = graphs.model.requires_grad_(False)  # an attacker searches images, not weights
        self._unpacking = [_unpacking(tail) for tail in graphs.model.tails]

    def sent(self, images: Tensor) -> Features:
        """What leaves the device for images ``(N, 3, H, W)`` float in [0, 1], a tensor for each server."""
        pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        sent = self._encoder.run({"image": pixels.numpy()})
        return tuple(torch.from_numpy(sent[name]) for name in self._names)

    def view(self, servers: Sequence[int]) -> ServerView:
        """What some servers see.

        Raises:
            ConfigError: no such server, or none.
        """
        if not servers or len(set(servers)) < len(servers) or not set(servers) <= set(range(self.num_servers)):
            raise ConfigError(
                f"servers must be different numbers from 0 to {self.num_servers - 1}, got {list(servers)}"
            )
        return ServerView(self, servers)

    def unpack(self, server: int, sent: Tensor) -> Tensor:
        """Float32 features from what a server is sent, in the places that its tail puts them to."""
        return self.place(server, self._wires[server].unpack(sent))

    def shares(self, images: Tensor) -> Features:
        """The features before they are packed, by the torch model, differentiable."""
        return self._model.features(images)

    def place(self, server: int, share: Tensor) -> Tensor:
        """A share's entries in their places."""
        placed: Tensor = self._unpacking[server](share)
        return placed


class ServerView:
    """What servers who pool what they are sent see of an image.

    ``observe`` runs the ONNX encoder; ``features`` is the torch model that it was exported from, for attackers who need
    gradients.

    Attributes:
        servers: their numbers.
        num_received: numbers that they receive for one image.
        noise: standard deviation of what the device adds to each feature; None where it adds none.
    """

    noise: float | None = None

    def __init__(self, target: Target, servers: Sequence[int]) -> None:
        self.servers = tuple(servers)
        self._target = target
        size = target.checkpoint.image_size
        sent = target.sent(torch.zeros(1, 3, size, size))
        self.num_received = sum(sent[k].numel() for k in self.servers)

    def observe(self, images: Tensor) -> Features:
        sent = self._target.sent(images)
        return tuple(self._target.unpack(k, sent[k]) for k in self.servers)

    def features(self, images: Tensor) -> Features:
        shares = self._target.shares(images)
        return tuple(self._target.place(k, shares[k]) for k in self.servers)


def _unpacking(tail: nn.Module) -> nn.Module:
    first = next(tail.children(), None)
    return first if isinstance(first, Unpacking) else nn.Identity()
