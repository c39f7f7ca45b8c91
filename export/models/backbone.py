"""A classification network as a row of blocks, so that it can be cut after any of them."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

from torch import Tensor, nn

from edge_sdk.errors import ConfigError

BACKBONES = {
    "cnn": "cnn",
    "resnet18": "resnet18",
    "vgg16": "vgg16",
    "vit": "vit",
}
"""Name to module of ``export.models``: its ``build`` makes the backbone, its ``branch`` a narrower copy of its end."""


class Backbone(NamedTuple):
    """Blocks and classifier of a network that takes normalised images ``(N, 3, H, W)``, H and W divisible by 16.

    ``default_split`` is the number of blocks that stay on the device unless the user says otherwise: the cut whose
    features have the height and width of SiftFunnel's for this backbone, so that the two can be compared.
    """

    blocks: tuple[nn.Module, ...]
    classifier: nn.Module
    default_split: int


class Classifier(nn.Sequential):
    """Global average pooling and a linear layer: ``(N, C, H, W)`` to logits ``(N, num_classes)``."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(GlobalAveragePool(), nn.Linear(channels, num_classes))


class GlobalAveragePool(nn.Module):
    """``(N, C, H, W)`` to ``(N, C)``; independent of H and W, so one set of weights serves every image size."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def conv_bn_relu(channels_in: int, channels_out: int, *, stride: int = 1) -> list[nn.Module]:
    """3x3 convolution without bias (batch normalisation has one), batch normalisation, ReLU."""
    conv = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(channels_out), nn.ReLU()]


def build_backbone(name: str, num_classes: int) -> Backbone:
    """The untrained backbone of that name, in torch's current default initialisation and random state.

    Raises:
        ConfigError: no such backbone; the message lists those there are.
    """
    backbone: Backbone = _module(name).build(num_classes)
    return backbone


def build_branch(name: str, split: int, width: float, num_classes: int, widened: int = 1) -> nn.Module:
    """An untrained copy of what follows a backbone's first ``split`` blocks, each layer ``width`` times as wide.

    Takes the features after those blocks, with ``widened`` times their channels, gives logits ``(N, num_classes)``.

    Raises:
        ConfigError: no such backbone.
    """
    branch: nn.Module = _module(name).branch(split, width, num_classes, widened)
    return branch


def _module(name: str) -> Any:
    if name not in BACKBONES:
        raise ConfigError(f"no backbone {name!r}; available: {', '.join(sorted(BACKBONES))}")
    return import_module(f".{BACKBONES[name]}", __package__)
