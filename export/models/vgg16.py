"""VGG-16 with batch normalisation and one linear layer (Simonyan and Zisserman, arXiv 1409.1556, configuration D).

The fifth max pooling is left to the classifier's global average pooling, so that 16x16 images work too.
"""

from __future__ import annotations

from torch import nn

from .backbone import Backbone, Classifier, conv_bn_relu

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def stage(channels_in: int, widths: tuple[int, ...], *, pool: bool = True) -> nn.Sequential:
    """3x3 convolutions with batch normalisation and ReLU, then 2x2 max pooling if ``pool``."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += conv_bn_relu(channels_in, width)
        channels_in = width
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


def build(num_classes: int) -> Backbone:
    """Five stages; the second gives 128 channels at a quarter of height and width."""
    inputs = (3, *(widths[-1] for widths in STAGES))
    last = len(STAGES) - 1
    blocks = tuple(stage(inputs[i], widths, pool=i < last) for i, widths in enumerate(STAGES))
    return Backbone(blocks, Classifier(STAGES[-1][-1], num_classes), default_split=2)


def branch(split: int, width: float, num_classes: int, widened: int = 1) -> nn.Module:
    """What follows the first ``split`` stages, narrowed."""
    channels, last, stages = widened * STAGES[split - 1][-1], len(STAGES) - 1, []
    for i in range(split, len(STAGES)):
        widths = tuple(round(wide * width) for wide in STAGES[i])
        stages.append(stage(channels, widths, pool=i < last))
        channels = widths[-1]
    return nn.Sequential(*stages, Classifier(channels, num_classes))
