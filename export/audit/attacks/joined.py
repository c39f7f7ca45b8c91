"""Features of any shape, of one server or several, brought to one grid for a convolutional attacker."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..images import sample
from ..scale import typical, varying
from .base import Features, View

NUM_SAMPLES = 256
LEAST_DEVIATION, LARGEST = 0.05, 8.0
GROUPS = 8


def feature_grid(shapes: Sequence[torch.Size], size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the first features that have them, ``(C, h, w)`` or tokens; else a quarter of the image's."""
    for shape in shapes:
        if len(shape) == 3:
            return shape[1], shape[2]
        if side := _side(shape):
            return side, side
    return size[0] // 4, size[1] // 4


def sample_features(view: View, images: Tensor) -> Features:
    """What the view shows of some of an attacker's images, uint8 ``(N, 3, H, W)``: enough to know their range.

    Of any: an image folder is sorted by class.
    """
    with torch.no_grad():
        return view.observe(sample(images, NUM_SAMPLES).float() / 255)


class JoinedFeatures(nn.Module):
    """The sum of all features, each brought to ``(N, width, *grid)``.

    Maps ``(C, h, w)``, and tokens ``(h * w, C)`` as maps, by a convolution and resizing, all else by a linear layer.

    Args:
        sample: features of some images, for their shapes and ranges.
        grid: height and width of the result.
        width: its channels.
    """

    def __init__(self, sample: Features, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.entries = nn.ModuleList()
        for z in sample:
            arrange = _Maps(side) if (side := _side(z.shape[1:])) else nn.Identity()
            arranged = arrange(z)
            self.entries.append(nn.Sequential(arrange, Standardize(arranged), _entry(arranged.shape[1:], grid, width)))

    def forward(self, features: Features) -> Tensor:
        return torch.stack([entry(z) for entry, z in zip(self.entries, features, strict=True)]).sum(0)


def _side(shape: torch.Size) -> int:
    """Of the square that tokens ``(T, D)`` are of; 0 where they are none."""
    side = math.isqrt(shape[0]) if len(shape) == 2 else 0
    return side if side > 1 and side**2 == shape[0] else 0


class _Maps(nn.Module):
    """Tokens ``(N, h * w, D)`` as maps ``(N, D, h, w)``."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, z: Tensor) -> Tensor:
        return z.transpose(1, 2).unflatten(2, (self.side, self.side))


class Standardize(nn.Module):
    """Features to mean 0 and standard deviation 1 in each channel, by fixed numbers, after ``asinh`` of them.

    A funnel's features have rare values far from all others. With batch normalisation a batch that holds one looks
    unlike all others, and in inference, with averages, the attacker was 2 dB weaker than in training in a small trial,
    5 dB in a larger one. So what is far from the channel's median is squashed, then cut off, and the attackers
    normalise by group [ours].

    What a PrivDFS server is not sent is the same for all images and tells nothing: it is shown as the mean, 0. Far from
    what is sent, as the zeros of a channel with a high mean are, it cost a small decoder 0.3 dB.
    """

    def __init__(self, sample: Tensor) -> None:
        super().__init__()
        middle, scale = typical(sample)
        squashed = varying((sample - middle) / scale).asinh().transpose(0, 1).flatten(1)
        mean = squashed.nanmean(1, keepdim=True)
        deviation = (squashed - mean).square().nanmean(1).sqrt().nan_to_num(1.0).clamp_min(LEAST_DEVIATION)
        self.register_buffer("middle", middle)
        self.register_buffer("scale", scale)
        self.register_buffer("mean", mean.nan_to_num(0.0).view_as(middle))
        self.register_buffer("deviation", deviation.view_as(middle))
        self.register_buffer("first", sample[:1].clone())
        self.register_buffer("alike", (sample == sample[:1]).all(0))

    def forward(self, z: Tensor) -> Tensor:
        squashed = ((z - self.middle) / self.scale).asinh()
        scaled = ((squashed - self.mean) / self.deviation).clamp(-LARGEST, LARGEST)
        return scaled.masked_fill(self.alike & (z == self.first), 0.0)


def _entry(shape: torch.Size, grid: tuple[int, int], width: int) -> nn.Module:
    if len(shape) == 3:
        fold = max(shape[1] // grid[0], 1)
        if fold > 1:  # finer than the grid: what resizing would lose goes into channels
            folded = torch.Size((shape[0] * fold**2, shape[1] // fold, shape[2] // fold))
            return nn.Sequential(nn.PixelUnshuffle(fold), _entry(folded, grid, width))
        return nn.Sequential(convolution(shape[0], width, bias=True), nn.Upsample(grid))
    numbers = shape.numel()
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(numbers, width * grid[0] * grid[1]),
        nn.Unflatten(1, (width, *grid)),
        nn.GroupNorm(GROUPS, width),
        nn.ReLU(),
    )


def convolution(channels_in: int, channels_out: int, *, bias: bool = False) -> nn.Sequential:
    """3x3 convolution, group normalisation, ReLU; without a bias, what is twice as large gives the same."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=bias), nn.GroupNorm(GROUPS, channels_out), nn.ReLU()
    )
