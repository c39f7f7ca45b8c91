"""Inversion by a decoder: trained on the attacker's own images to rebuild them from their features.

The attack of Dosovitskiy and Brox, arXiv 1506.02753. Two decoders: residual up-sampling [ours], the stronger as a rule,
and SiftFunnel's transposed convolutions (arXiv 2501.00824, reference implementation).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import Features, Progress, Rebuild, View
from .fitting import fit_network
from .joined import GROUPS, JoinedFeatures, convolution, feature_grid, sample_features


@dataclass(frozen=True, kw_only=True)
class InversionAttack:
    """A decoder that is trained with the mean squared error.

    Attributes:
        decoder: ``residual`` or ``transposed``.
        width: channels of the decoder.
        epochs: over the attacker's images.
        batch_size: images a step.
        learning_rate: highest, of one cycle of AdamW.
        seed: of the weights and the order.
    """

    decoder: Literal["residual", "transposed"] = "residual"
    width: int = 96
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 2e-3
    seed: int = 0

    @property
    def name(self) -> str:
        return f"inversion, {self.decoder}"

    def fit(self, view: View, images: Tensor, state: Path | None, progress: Progress) -> Rebuild:
        torch.manual_seed(self.seed)
        decoder = Decoder(self.decoder, sample_features(view, images), (images.shape[2], images.shape[3]), self.width)
        decoder.to(view.device, memory_format=torch.channels_last)

        def loss(batch: Tensor) -> Tensor:
            seen = view.observe(batch)
            with torch.autocast(view.device.type, torch.bfloat16):
                rebuilt = decoder(seen)
            return functional.mse_loss(rebuilt.float(), batch.to(view.device))

        fit_network(
            decoder, loss, images, epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate,
            seed=self.seed, state=state, progress=progress,
        )  # fmt: skip

        def rebuild(seen: Features) -> Tensor:
            with torch.no_grad():
                image: Tensor = decoder(seen)
            return image.cpu()

        return rebuild


class Decoder(nn.Module):
    """Features to images ``(N, 3, H, W)`` in [0, 1].

    From the features' grid the image's size is reached by doubling.
    """

    def __init__(self, kind: str, sample: Features, size: tuple[int, int], width: int) -> None:
        super().__init__()
        grid = feature_grid([z.shape[1:] for z in sample], size)
        doublings = min(size[0] // grid[0], size[1] // grid[1]).bit_length() - 1
        self.joined = JoinedFeatures(sample, grid, width)
        self.body = _residual(width, doublings) if kind == "residual" else _transposed(width, doublings)

    def forward(self, features: Features) -> Tensor:
        image: Tensor = self.body(self.joined(features))
        return image


def _residual(width: int, doublings: int) -> nn.Sequential:
    layers: list[nn.Module] = [_Residual(width), _Residual(width)]
    for _ in range(doublings):
        layers += [nn.Upsample(scale_factor=2), convolution(width, width), _Residual(width)]
    return nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1), nn.Sigmoid())


def _transposed(width: int, doublings: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(doublings):
        layers += [nn.ConvTranspose2d(width, width, 4, 2, padding=1), nn.BatchNorm2d(width), nn.Tanh()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 3, 1, padding=1), nn.Sigmoid())


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(width, width), nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out.relu()
