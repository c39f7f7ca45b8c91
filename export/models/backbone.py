"""A classification network as a row of blocks, so that it can be cut after any of them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

from torch import Tensor, nn

from edge_sdk.errors import ConfigError

BACKBONES = {
    "cnn": "cnn:build",
    "resnet18": "resnet18:build",
    "vgg16": "vgg16:build",
}
"""Name to ``module:function`` of ``export.models``; the function takes the number of classes."""


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
    if name not in BACKBONES:
        raise ConfigError(f"no backbone {name!r}; available: {', '.join(sorted(BACKBONES))}")
    module, function = BACKBONES[name].split(":")
    build: Callable[[int], Backbone] = getattr(import_module(f".{module}", __package__), function)
    return build(num_classes)
