"""The small CNN of the SiftFunnel comparison: four blocks, 64 channels wide at the first.

The two blocks that a device may run are the comparison's; those in the cloud are deeper, where depth costs no battery.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from .backbone import Backbone, Classifier, conv_bn_relu
from .resnet18 import BasicBlock

WIDTHS = (64, 128, 256, 256)


def build(num_classes: int) -> Backbone:
    """Four blocks, each halving height and width; 2.74 M parameters for 10 classes."""
    blocks = tuple(_block(i, WIDTHS[i - 1] if i else 3, width) for i, width in enumerate(WIDTHS))
    return Backbone(blocks, Classifier(WIDTHS[-1], num_classes), default_split=2)


def branch(split: int, width: float, num_classes: int, widened: int = 1) -> nn.Module:
    """What follows the first ``split`` blocks, narrowed."""
    widths = [widened * WIDTHS[split - 1], *(round(wide * width) for wide in WIDTHS[split:])]
    blocks = (_block(split + i, a, b) for i, (a, b) in enumerate(pairwise(widths)))
    return nn.Sequential(*blocks, Classifier(widths[-1], num_classes))


def _block(index: int, channels_in: int, width: int) -> nn.Sequential:
    """A 3x3 convolution; in the third block a residual block and in the last a convolution follow; 2x2 max pooling."""
    layers = conv_bn_relu(channels_in, width)
    if index == 2:
        return nn.Sequential(*layers, BasicBlock(width, width, 1), nn.MaxPool2d(2))
    if index == 3:
        layers += conv_bn_relu(width, width)
    return nn.Sequential(*layers[:-1], nn.MaxPool2d(2), layers[-1])  # pooling before ReLU: the same, for less
