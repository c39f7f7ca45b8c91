"""ResNet-18 with the 3x3 stem that small images use (He et al., arXiv 1512.03385, sections 3.3 and 4.2)."""

from __future__ import annotations

from torch import Tensor, nn

from .backbone import Backbone, Classifier, conv_bn_relu

WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (identity, or 1x1 convolution where the shape changes)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *conv_bn_relu(channels_in, channels_out, stride=stride),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.residual(x) + self.shortcut(x)
        return out.relu()


def stage(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    """Two basic blocks, the first with the stride."""
    return nn.Sequential(BasicBlock(channels_in, channels_out, stride), BasicBlock(channels_out, channels_out, 1))


def build(num_classes: int) -> Backbone:
    """Stem and four stages: five blocks; the third (stage 2) gives 128 channels at half height and width."""
    stem = nn.Sequential(*conv_bn_relu(3, WIDTHS[0]))
    widths_in = (WIDTHS[0], *WIDTHS)
    stages = (stage(a, b, 1 if i == 0 else 2) for i, (a, b) in enumerate(zip(widths_in, WIDTHS, strict=False)))
    return Backbone((stem, *stages), Classifier(WIDTHS[-1], num_classes), default_split=3)


def branch(split: int, width: float, num_classes: int, widened: int = 1) -> nn.Module:
    """What follows the stem and the first ``split - 1`` stages, narrowed."""
    widths = [widened * WIDTHS[max(split - 2, 0)], *(round(wide * width) for wide in WIDTHS[split - 1 :])]
    strides = [1 if split + i == 1 else 2 for i in range(len(widths) - 1)]
    stages = (stage(a, b, stride) for a, b, stride in zip(widths, widths[1:], strides, strict=False))
    return nn.Sequential(*stages, Classifier(widths[-1], num_classes))
