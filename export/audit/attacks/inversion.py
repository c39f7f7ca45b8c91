"""Inversion by a decoder: trained on the attacker's own images to rebuild them from their features.

The attack of Dosovitskiy and Brox, arXiv 1506.02753, with a residual up-sampling decoder [ours], which is the stronger
one beside SiftFunnel's transposed convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Features = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class InversionAttack:
    """A decoder's size and training; ``fit`` gives the attacker's decoder.

    Attributes:
        width: channels of the decoder.
        epochs: over the attacker's images.
        batch_size: images a step.
        learning_rate: highest, of one cycle of AdamW.
        seed: of the weights and the order.
    """

    width: int = 96
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 2e-3
    seed: int = 0

    def fit(
        self,
        features: Callable[[Tensor], Features],
        images: Tensor,
        progress: Callable[[int, float], None] = lambda epoch, loss: None,
    ) -> Decoder:
        """Train a decoder.

        Args:
            features: what the attacker sees of a batch of images ``(N, 3, H, W)`` float in [0, 1], one tensor or more.
            images: the attacker's own, uint8 ``(N, 3, H, W)``.
            progress: called after every epoch with the mean squared error.

        Returns:
            The decoder, in inference mode.
        """
        torch.manual_seed(self.seed)
        height, width = images.shape[2:]
        with torch.no_grad():
            shapes = [z.shape[1:] for z in features(_scaled(images[:2]))]
        decoder = Decoder(shapes, (height, width), self.width)
        optimizer = torch.optim.AdamW(decoder.parameters(), self.learning_rate, weight_decay=1e-4)
        steps = math.ceil(len(images) / self.batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=steps * self.epochs, pct_start=0.2
        )
        for epoch in range(self.epochs):
            total = 0.0
            for rows in torch.randperm(len(images)).split(self.batch_size):
                x = _scaled(images[rows])
                if torch.rand(()) < 0.5:
                    x = x.flip(3)
                with torch.no_grad():
                    seen = features(x)
                with torch.autocast(x.device.type, torch.bfloat16):
                    rebuilt = decoder(seen).float()
                loss = functional.mse_loss(rebuilt, x)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(rows)
            progress(epoch + 1, total / len(images))
        return decoder.eval()


class Decoder(nn.Module):
    """Features to images ``(N, 3, H, W)`` in [0, 1].

    Each tensor is brought to one grid, maps ``(C, h, w)`` as they are, all else through a linear layer; then residual
    blocks and up-sampling.
    """

    def __init__(self, shapes: Sequence[torch.Size], size: tuple[int, int], width: int) -> None:
        super().__init__()
        maps = [shape for shape in shapes if len(shape) == 3]
        grid = (maps[0][1], maps[0][2]) if maps else (size[0] // 4, size[1] // 4)
        self.entries = nn.ModuleList(_entry(shape, grid, width) for shape in shapes)
        layers: list[nn.Module] = [_Residual(width), _Residual(width)]
        height, wide = grid
        while height * 2 <= size[0] and wide * 2 <= size[1]:
            height, wide = 2 * height, 2 * wide
            layers += [nn.Upsample(scale_factor=2), _convolution(width, width), _Residual(width)]
        self.body = nn.Sequential(*layers)
        self.paint = nn.Conv2d(width, 3, 3, padding=1)
        self.size = size

    def forward(self, features: Features) -> Tensor:
        joined = torch.stack([entry(z) for entry, z in zip(self.entries, features, strict=True)]).sum(0)
        image: Tensor = self.paint(self.body(joined)).sigmoid()
        return image


def _entry(shape: torch.Size, grid: tuple[int, int], width: int) -> nn.Module:
    if len(shape) == 3:
        return nn.Sequential(nn.BatchNorm2d(shape[0]), _convolution(shape[0], width), nn.Upsample(grid))
    numbers = shape.numel()
    return nn.Sequential(
        nn.Flatten(),
        nn.BatchNorm1d(numbers),
        nn.Linear(numbers, width * grid[0] * grid[1]),
        nn.Unflatten(1, (width, *grid)),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(width, width), nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out.relu()


def _convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()
    )


def _scaled(images: Tensor) -> Tensor:
    return images.float() / 255
