"""A Vision Transformer for small images: ViT-Tiny's width and heads, half its depth, patches of 4x4 pixels.

Sources: Dosovitskiy et al., arXiv 2010.11929 (pre-norm blocks); Touvron et al., arXiv 2012.12877, table 1 (width 192, 3
heads: "Ti"); Beyer et al., arXiv 2205.01580 (fixed sine-cosine positions, global average pooling).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .backbone import Backbone

WIDTH = 192
HEADS = 3
DEPTH = 6
PATCH = 4


class PatchEmbedding(nn.Module):
    """Images ``(N, 3, H, W)`` to tokens ``(N, H W / 16, width)`` with their positions added; any H and W."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, width, PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:
        z = self.project(x)
        positions = sine_cosine(z.shape[2], z.shape[3], z.shape[1]).to(z)
        return z.flatten(2).transpose(1, 2) + positions


class Block(nn.Module):
    """Attention and a two-layer network, each normalised before and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        x = x + self.join(attended)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class TokenClassifier(nn.Module):
    """Normalised tokens ``(N, T, width)``, their mean, and a linear layer: logits ``(N, num_classes)``."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.norm(x).mean(1))
        return logits


def sine_cosine(rows: int, columns: int, width: int) -> Tensor:
    """``(rows * columns, width)``: sines and cosines of the row in one half, of the column in the other."""
    frequencies = 1 / 10000 ** (torch.arange(width // 4) / (width // 4 - 1))
    angles = [torch.arange(size)[:, None] * frequencies for size in (rows, columns)]
    row, column = (torch.cat((angle.sin(), angle.cos()), 1) for angle in angles)
    grid = (row[:, None].expand(rows, columns, -1), column[None].expand(rows, columns, -1))
    return torch.cat(grid, 2).reshape(rows * columns, width)


def build(num_classes: int) -> Backbone:
    """Embedding and six transformer blocks; the first three of the seven stay on the device."""
    blocks = (PatchEmbedding(WIDTH), *(Block(WIDTH, HEADS) for _ in range(DEPTH)))
    return Backbone(blocks, TokenClassifier(WIDTH, num_classes), default_split=3)


def branch(split: int, width: float, num_classes: int, widened: int = 1) -> nn.Module:
    """What follows the first ``split`` blocks, narrowed by ``width`` to a whole number of heads."""
    heads = max(round(HEADS * width), 1)
    narrow = heads * (WIDTH // HEADS)
    blocks = (Block(narrow, heads) for _ in range(DEPTH + 1 - split))
    return nn.Sequential(nn.Linear(widened * WIDTH, narrow), *blocks, TokenClassifier(narrow, num_classes))
