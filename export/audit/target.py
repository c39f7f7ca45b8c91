"""The model under attack, as it ships."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.bundle import Precision
from edge_sdk.errors import ConfigError

from ..checkpoint import Checkpoint
from ..cost import count_cost
from ..defenses import Unpacking
from ..defenses.noise import FeatureDropout, GaussianNoise
from ..placement import ENCODER, onnx_files, placement_graph
from ..precision import lowered
from ..shipped import shipped_graphs
from ..wire import WireDtype
from .attacks.base import Features

CPU = torch.device("cpu")


class Target:
    """A trained model and the ONNX encoder that export writes of it.

    Args:
        checkpoint: trained.
        wire_dtype: of the features.
        precision: of the encoder.
        calibration: uint8 ``(N, H, W, 3)``, training images, for int8.
        num_threads: of ONNX Runtime; None lets it choose.
        device: where attackers compute. The encoder runs on the CPU, as the one that ships.

    Attributes:
        device: where attackers compute.
        num_servers: that get a share.
        edge_cost: of the encoder, for one image.
        wire_bytes: that leave the device for one image.

    Raises:
        ConfigError: int8 without calibration images.
        DataError: uint8 is asked of a checkpoint without feature ranges.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        wire_dtype: WireDtype = "float32",
        precision: Precision = "fp32",
        calibration: NDArray[np.uint8] | None = None,
        num_threads: int | None = None,
        device: torch.device = CPU,
    ) -> None:
        graphs = self._graphs = shipped_graphs(checkpoint, wire_dtype)
        self.checkpoint, self.wire_dtype, self.precision, self.device = checkpoint, wire_dtype, precision, device
        self.num_servers = len(graphs.tails)
        size = checkpoint.image_size
        encoder = graphs.encoder_onnx(size, "dynamic")
        self.edge_cost = count_cost(encoder)
        if precision != "fp32":
            files = onnx_files(graphs, size, "dynamic")
            parts = placement_graph(files, graphs.names)
            encoder = lowered(graphs, parts, files, precision, calibration).files[ENCODER]
        self._encoder = OnnxRuntimeBackend(encoder, num_threads)
        self.wire_bytes = sum(share.nbytes for share in self.sent(torch.zeros(1, 3, size, size)))
        graphs.model.requires_grad_(False)  # an attacker searches images, not weights
        if device.type == "cuda":
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.allow_tf32 = False  # whose rounding would pass for information
        # What attackers take gradients of; the graphs' own draws the noise of what is sent.
        self._searched = graphs.model if device == CPU else copy.deepcopy(graphs.model).to(device)
        self._unpacking = [_unpacking(tail) for tail in graphs.model.tails]

    def sent(self, images: Tensor) -> Features:
        """What leaves the device for images ``(N, 3, H, W)`` float in [0, 1], a tensor for each server.

        Noise is drawn from torch's generator, so that a seed decides an audit; a device draws its own.
        """
        pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        noise = self._graphs.named(self._graphs.draw_noise(pixels))
        sent = self._encoder.run({"image": pixels.numpy(), **noise})
        return tuple(torch.from_numpy(sent[name]) for name in self._graphs.names.shares)

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
        return self.place(server, self._graphs.wires[server].unpack(sent)).to(self.device)

    def shares(self, images: Tensor) -> Features:
        """The features before noise and packing, by the torch model, differentiable."""
        return self._searched.shares(images)

    @property
    def dropout(self) -> FeatureDropout | None:
        """What sets features to zero at random; None where nothing does."""
        noise = self._graphs.model.noise
        return noise if isinstance(noise, FeatureDropout) else None

    def noise(self, servers: Sequence[int]) -> tuple[float, ...] | None:
        """Standard deviation of the noise on each server's share; None where Gaussian noise is not what is added."""
        noise = self._graphs.model.noise
        return tuple(float(noise.sigma[k]) for k in servers) if isinstance(noise, GaussianNoise) else None

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
        device: where what is observed lies.
        num_received: numbers that they receive for one image.
        noise: standard deviation of the noise on each share; None where Gaussian noise is not what is added.
        drops: whether features are set to zero at random.
    """

    def __init__(self, target: Target, servers: Sequence[int]) -> None:
        self.servers = tuple(servers)
        self._target, self.device = target, target.device
        size = target.checkpoint.image_size
        self.noise = target.noise(self.servers)
        self.drops = target.dropout is not None
        with torch.no_grad():
            self._shapes = [share.shape for share in self.shares(torch.zeros(1, 3, size, size, device=self.device))]
        self.num_received = sum(shape.numel() for shape in self._shapes)

    def observe(self, images: Tensor) -> Features:
        sent = self._target.sent(images)
        return tuple(self._target.unpack(k, sent[k]) for k in self.servers)

    def features(self, images: Tensor) -> Features:
        return tuple(self._target.place(k, share) for k, share in zip(self.servers, self.shares(images), strict=True))

    def shares(self, images: Tensor) -> Features:
        """``features`` as they travel, before a tail puts them to their places among zeros."""
        shares = self._target.shares(images)
        return tuple(shares[k] for k in self.servers)

    def as_sent(self, placed: Sequence[Tensor]) -> list[Tensor]:
        """Of what belongs to one image's ``features``, or is broadcast to them, the part for each of its ``shares``."""
        found = []
        for k, shape, each in zip(self.servers, self._shapes, placed, strict=True):
            numbers = torch.arange(1, shape.numel() + 1, dtype=torch.float32, device=self.device).view(shape)
            places = self._target.place(k, numbers)[0]
            kept = places > 0
            share = torch.empty(shape[1:].numel(), device=self.device)
            share[places[kept].long() - 1] = each.expand_as(places)[kept]
            found.append(share.view(shape[1:]))
        return found

    def draw_kept(self, generator: torch.Generator) -> list[Tensor]:
        """Of one image's ``shares``, 1 for each feature that is sent and 0 for each that was set to zero at random."""
        ones = [torch.ones(shape) for shape in self._shapes]
        if (dropout := self._target.dropout) is not None:
            ones = list(dropout(tuple(ones), [torch.randn(shape, generator=generator) for shape in self._shapes]))
        return [each.to(self.device) for each in ones]


def _unpacking(tail: nn.Module) -> nn.Module:
    first = next(tail.children(), None)
    return first if isinstance(first, Unpacking) else nn.Identity()
