"""The small CNN of the SiftFunnel comparison: four convolution blocks, 64 channels wide at the first."""

from __future__ import annotations

from torch import nn

from .backbone import Backbone, Classifier, conv_bn_relu

BLOCKS = ((64,), (128,), (256,), (256,))
"""Channels of each block's convolutions."""


def pooled_block(channels_in: int, widths: tuple[int, ...]) -> nn.Sequential:
    """3x3 convolutions with batch normalisation and ReLU; 2x2 max pooling before the last ReLU."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += conv_bn_relu(channels_in, width)
        channels_in = width
    return nn.Sequential(*layers[:-1], nn.MaxPool2d(2), layers[-1])


def build(num_classes: int) -> Backbone:
    """Four blocks, each halving height and width; 0.96 M parameters for 10 classes."""
    inputs = (3, *(widths[-1] for widths in BLOCKS))
    blocks = tuple(pooled_block(channels, widths) for channels, widths in zip(inputs, BLOCKS, strict=False))
    return Backbone(blocks, Classifier(inputs[-1], num_classes), default_split=2)


def branch(split: int, width: float, num_classes: int) -> nn.Module:
    """What follows the first ``split`` blocks, narrowed."""
    channels, blocks = BLOCKS[split - 1][-1], []
    for wide in BLOCKS[split:]:
        widths = tuple(round(each * width) for each in wide)
        blocks.append(pooled_block(channels, widths))
        channels = widths[-1]
    return nn.Sequential(*blocks, Classifier(channels, num_classes))
