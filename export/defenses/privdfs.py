"""PrivDFS: each of K servers gets another sparse share of the features, and the client fuses their predictions.

PrivDFS, arXiv 2508.04346. What neither its abstract nor its figures state is [ours]: the straight-through masks, the
penalties' form, the fusion's form, the share dropout, the keyed assignment, the adversary, and what makes a share hard
to rebuild an image from: each image's own brightness and contrast are taken out first, and residual blocks deepen the
encoder before the masks.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_sdk.errors import ConfigError

from ..models import build_backbone, build_branch
from ..models.resnet18 import BasicBlock
from .base import Batch, CrossEntropyConfig, Objective, SplitModel, Unpacking, input_layer

TOKENS = ("vit",)
"""Backbones whose features are tokens, not maps."""


class PrivDFS:
    """Learnable binary masks cut the features into K sparse shares; K branches; a light fusion on the client."""

    paper = "PrivDFS, arXiv 2508.04346"
    calibrated = False

    @dataclass(frozen=True, kw_only=True)
    class Config(CrossEntropyConfig):
        """Weights of the objective's terms, and the shape of the model.

        ``image_size`` is part of the model, because a mask has one entry for each feature.

        Raises:
            ConfigError: fewer than 2 or more than 8 servers, a density whose shares cannot be disjoint, a share dropout
                outside [0, 1), a negative weight, or ``blocks`` for a backbone that is not convolutional.
        """

        num_servers: int = 4
        split: int | None = None  # backbone blocks on the device; None takes the backbone's default
        blocks: int | None = None  # residual blocks after them, before the masks; None: 3 after convolutions
        widen: int = 1  # times the channels that the last of those has
        standardize: bool = True  # each image to mean 0 and deviation 1, rather than all by the data's
        density: float = 0.1  # share of the features that each server gets
        branch_width: float = 0.5  # of the branches' layers, against the backbone's
        auxiliary: float = 0.3  # cross-entropy of each branch alone
        sparsity: float = 200.0  # squared difference of a mask's density from ``density``
        overlap: float = 50.0  # entries that two masks share
        share_dropout: float = 0.1  # chance that a training batch lacks one server's answer
        keyed: bool = False  # one mask, whose entries a user's key deals out to the servers
        adversarial: float = 0.0  # reversed gradient of decoders that rebuild the image from each share
        image_size: int = 32

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 2 <= self.num_servers <= 8:
                raise ConfigError(f"num_servers must be 2 to 8, got {self.num_servers}")
            if not 0 < self.density * self.num_servers <= 1:
                raise ConfigError(f"density must be more than 0 and at most 1/{self.num_servers}, got {self.density}")
            if self.blocks is not None and not 0 <= self.blocks <= 16:
                raise ConfigError(f"blocks must be 0 to 16, got {self.blocks}")
            if not 1 <= self.widen <= 4:
                raise ConfigError(f"widen must be 1 to 4, got {self.widen}")
            if self.blocks == 0 and self.widen > 1:
                raise ConfigError("widen is of a residual block; raise blocks above 0")
            if (self.blocks or self.widen > 1) and self.backbone in TOKENS:
                raise ConfigError(f"{self.backbone} takes no residual blocks of convolutions; raise split instead")
            if not 0 < self.branch_width <= 4:
                raise ConfigError(f"branch_width must be more than 0 and at most 4, got {self.branch_width}")
            if not 0 <= self.share_dropout < 1:
                raise ConfigError(f"share_dropout must be in [0, 1), got {self.share_dropout}")
            for name in ("auxiliary", "sparsity", "overlap", "adversarial"):
                if getattr(self, name) < 0:
                    raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.adversaries = nn.ModuleList()

    def build(self) -> SplitModel:
        """The backbone's first blocks and the masks; a narrower copy of its end for each server; the fusion.

        Raises:
            ConfigError: ``split`` leaves no block on either side.
        """
        config = self.config
        backbone = build_backbone(config.backbone, config.num_classes)
        split = backbone.default_split if config.split is None else config.split
        if not 1 <= split < len(backbone.blocks):
            raise ConfigError(f"split must be 1 to {len(backbone.blocks) - 1} for {config.backbone}, got {split}")
        encoder = nn.Sequential(input_layer(config, config.standardize), *backbone.blocks[:split])
        encoder.extend(self._deepened(_shape(encoder, config.image_size)))
        shape = _shape(encoder, config.image_size)
        masks = ShareMasks(config.num_servers, shape, config.density, keyed=config.keyed)
        tails: list[nn.Module] = [
            nn.Sequential(
                Scatter(masks, k),
                build_branch(config.backbone, split, config.branch_width, config.num_classes, config.widen),
            )
            for k in range(config.num_servers)
        ]
        if config.adversarial:
            self.adversaries = nn.ModuleList(Decoder(shape, config.image_size) for _ in tails)
        edge = nn.Sequential(encoder, masks)
        return SplitModel(edge, tails, Fusion(config.num_servers, config.num_classes)).train()

    def _deepened(self, shape: torch.Size) -> list[nn.Module]:
        """The residual blocks after features ``(C, H, W)``; before the last, H and W are halved where there is room."""
        config = self.config
        count = (0 if config.backbone in TOKENS else 3) if config.blocks is None else config.blocks
        widths = [shape[0]] * (count - 1) + [config.widen * shape[0]] * (count > 0)
        blocks: list[nn.Module] = [BasicBlock(shape[0], width, 1) for width in widths]
        if count and config.image_size >= 32:  # the backbones halve four times
            blocks.insert(-1, nn.MaxPool2d(2))
        return blocks

    def loss(self, model: SplitModel, batch: Batch) -> Objective:
        """Cross-entropies of fusion and branches, sparsity, overlap, and the adversary's reversed error."""
        config = self.config
        masks: Any = model.edge[1]  # type: ignore[index]
        shares = model.features(batch.images)
        outputs = [tail(share) for tail, share in zip(model.tails, shares, strict=True)]
        received = self._drop(batch.labels)
        logits = model.fuse(outputs, received)
        binary = masks.binary()
        density = binary.flatten(1).mean(1)
        together = binary.flatten(1) @ binary.flatten(1).T / binary[0].numel()
        terms = {
            "cross_entropy": config.cross_entropy(logits, batch.targets),
            "branches": config.auxiliary * torch.stack([config.cross_entropy(o, batch.targets) for o in outputs]).sum(),
            "sparsity": config.sparsity * (density - config.density).square().sum(),
            "overlap": config.overlap * together.triu(1).sum(),
        }
        if config.adversarial:
            errors = [
                functional.mse_loss(decoder(_reverse(share, config.adversarial)).float(), batch.images)
                for decoder, share in zip(self.adversaries, shares, strict=True)
            ]
            terms["adversary"] = torch.stack(errors).sum()
        return Objective(terms, logits)

    def _drop(self, labels: Tensor) -> Tensor:
        """Which answers arrive, ``(N, K)``: at times one server's is missing from an image's."""
        n, servers = len(labels), self.config.num_servers
        lost = functional.one_hot(torch.randint(servers, (n,)), servers)
        dropped = (torch.rand(n, 1) < self.config.share_dropout).long()
        return (1 - lost * dropped).float().to(labels.device)


def _shape(encoder: nn.Module, size: int) -> torch.Size:
    """Of the features of one image."""
    with torch.no_grad():
        features: Tensor = encoder.eval()(torch.zeros(1, 3, size, size))
    return features.shape[1:]


class ShareMasks(nn.Module):
    """K binary masks over features of one shape; starts as disjoint random ones.

    In training gives K dense tensors ``M_k * z`` whose masks pass gradients straight through a sigmoid. In inference
    gives what travels: K flat vectors ``(N, n_k)`` of the entries that each mask keeps, in their order.

    With ``keyed`` one mask is learned, and a key deals its entries out to the servers; in training every batch is dealt
    anew at random, so that the branches serve any key.
    """

    def __init__(self, num_servers: int, shape: torch.Size, density: float, *, keyed: bool = False) -> None:
        super().__init__()
        self.num_servers, self.keyed, self.key = num_servers, keyed, b""
        size = shape.numel()
        kept = int(density * size)
        if not kept:
            raise ConfigError(f"density {density} keeps none of {size} features; raise it")
        entries = torch.randperm(size)[: num_servers * kept].view(num_servers, kept)
        if keyed:
            entries = entries.view(1, -1)
        # As far from the threshold as some hundred steps of Adam move an entry.
        logits = torch.full((len(entries), size), -0.5).scatter(1, entries, 0.5)
        self.logits = nn.Parameter(logits.view(-1, *shape))
        self.kept = self._find_kept()

    def binary(self) -> Tensor:
        """``(K, *shape)``, 1 where ``sigmoid(logits) > 1/2``, with the sigmoid's gradient; keyed ones newly dealt."""
        soft = self.logits.sigmoid()
        binary = (self.logits > 0).to(soft.dtype) + soft - soft.detach()
        if self.keyed:
            owner = torch.randint(self.num_servers, binary.shape[1:]).to(binary.device)
            binary = torch.cat([binary * (owner == k) for k in range(self.num_servers)])
        return binary

    def use_key(self, key: bytes) -> None:
        """Deal the entries by this key: sorted by their keyed hash, an equal part to each server."""
        self.key = key
        self.kept = self._find_kept()

    def train(self, mode: bool = True) -> ShareMasks:
        """Fix what is kept when training ends: constants, as an exported graph needs them."""
        self.kept = self._find_kept()
        return super().train(mode)

    def _find_kept(self) -> tuple[Tensor, ...]:
        """Each server's places in the flat features, int64, sorted."""
        if self.logits.is_meta:
            return ()
        kept = [logits.flatten().gt(0).nonzero().flatten().cpu() for logits in self.logits.detach()]
        if not self.keyed:
            return tuple(kept)
        entries = sorted(kept[0].tolist(), key=lambda i: hmac.digest(self.key, i.to_bytes(8, "big"), "sha256"))
        return tuple(torch.tensor(sorted(entries[k :: self.num_servers])) for k in range(self.num_servers))

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        if self.training:
            return tuple(z * mask for mask in self.binary().to(z.dtype))
        flat = z.flatten(1)
        return tuple(flat.index_select(1, kept.to(z.device)) for kept in self.kept)


class Scatter(Unpacking):
    """A server's vector ``(N, n_k)`` put back to its places among zeros; in training the tensors are whole already."""

    def __init__(self, masks: ShareMasks, server: int) -> None:
        super().__init__()
        self._masks = (masks,)  # not a module of the tail: the encoder's weights hold the masks, once
        self._server = server

    def forward(self, share: Tensor) -> Tensor:
        if share.dim() > 2:  # whole, as in training
            return share
        masks = self._masks[0]
        shape, kept = masks.logits.shape[1:], masks.kept[self._server]
        # Every place's entry in the share; a zero is appended for the places that have none.
        entry = torch.full((shape.numel(),), len(kept))
        entry[kept] = torch.arange(len(kept))
        padded = torch.cat((share, torch.zeros_like(share[:, :1])), 1)
        return padded.index_select(1, entry.to(share.device)).view(-1, *shape)


class Fusion(nn.Module):
    """A linear layer over the servers' logits that were received, scaled to the weight of all of them.

    Takes K tensors ``(N, num_classes)`` and ``received`` ``(N, K)`` of 0 and 1; gives logits ``(N, num_classes)``.
    """

    def __init__(self, num_servers: int, num_classes: int) -> None:
        super().__init__()
        eye = torch.eye(num_classes).expand(num_servers, num_classes, num_classes) / num_servers
        self.weight = nn.Parameter(eye.clone())
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, outputs: list[Tensor], received: Tensor) -> Tensor:
        stacked = torch.stack(outputs, 1) * received[:, :, None]
        scale = received.shape[1] / received.sum(1, keepdim=True).clamp_min(1)
        # Not as a matrix product, which TensorRT for RTX refuses in float32 on sm_75.
        return (stacked.unsqueeze(3) * self.weight).sum((1, 2)) * scale + self.bias


class Decoder(nn.Module):
    """A small adversary: one share, dense, to an image ``(N, 3, size, size)`` in [0, 1]."""

    def __init__(self, shape: torch.Size, image_size: int) -> None:
        super().__init__()
        self.size = image_size // 4
        self.spread = nn.Sequential(nn.Flatten(), nn.Linear(shape.numel(), 256), nn.BatchNorm1d(256), nn.ReLU())
        self.grow = nn.Linear(256, 32 * self.size**2)
        self.paint = nn.Sequential(
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 48, 3, padding=1),
            nn.PixelShuffle(4), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, share: Tensor) -> Tensor:
        image: Tensor = self.paint(self.grow(self.spread(share)).view(-1, 32, self.size, self.size))
        return image


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradient, None


def _reverse(x: Tensor, weight: float) -> Tensor:
    """``x``, whose gradient comes back times ``-weight`` (Ganin and Lempitsky, arXiv 1409.7495)."""
    out: Tensor = _Reverse.apply(x, weight)  # type: ignore[no-untyped-call]
    return out
