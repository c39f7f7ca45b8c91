"""The small CNN of the SiftFunnel comparison: four convolution blocks, 64 channels wide at the first."""

from __future__ import annotations

from torch import nn

from .backbone import Backbone, Classifier

WIDTHS = (64, 128, 256, 256)


def pooled_block(channels_in: int, channels_out: int) -> nn.Sequential:
    """3x3 convolution, batch normalisation, 2x2 max pooling, ReLU: halves height and width."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.MaxPool2d(2),
        nn.ReLU(),
    )


def build(num_classes: int) -> Backbone:
    """Four blocks, each halving height and width; 0.97 M parameters for 10 classes."""
    blocks = tuple(pooled_block(a, b) for a, b in zip((3, *WIDTHS), WIDTHS, strict=False))
    return Backbone(blocks, Classifier(WIDTHS[-1], num_classes), default_split=2)
