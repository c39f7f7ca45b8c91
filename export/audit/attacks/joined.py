"""Features of any shape, of one server or several, brought to one grid for a convolutional attacker."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .base import Features


def feature_grid(shapes: Sequence[torch.Size], size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the first features that have them, ``(C, h, w)``; else a quarter of the image's."""
    for shape in shapes:
        if len(shape) == 3:
            return shape[1], shape[2]
    return size[0] // 4, size[1] // 4


class JoinedFeatures(nn.Module):
    """The sum of all features, each brought to ``(N, width, *grid)``.

    Maps ``(C, h, w)`` by a convolution and resizing, all else by a linear layer.
    """

    def __init__(self, shapes: Sequence[torch.Size], grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.entries = nn.ModuleList(_entry(shape, grid, width) for shape in shapes)

    def forward(self, features: Features) -> Tensor:
        return torch.stack([entry(z) for entry, z in zip(self.entries, features, strict=True)]).sum(0)


def _entry(shape: torch.Size, grid: tuple[int, int], width: int) -> nn.Module:
    if len(shape) == 3:
        fold = max(shape[1] // grid[0], 1)
        if fold > 1:  # finer than the grid: what resizing would lose goes into channels
            folded = torch.Size((shape[0] * fold**2, shape[1] // fold, shape[2] // fold))
            return nn.Sequential(nn.PixelUnshuffle(fold), _entry(folded, grid, width))
        return nn.Sequential(nn.BatchNorm2d(shape[0]), convolution(shape[0], width), nn.Upsample(grid))
    numbers = shape.numel()
    return nn.Sequential(
        nn.Flatten(),
        nn.BatchNorm1d(numbers),
        nn.Linear(numbers, width * grid[0] * grid[1]),
        nn.Unflatten(1, (width, *grid)),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


def convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    """3x3 convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()
    )
