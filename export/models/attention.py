"""Attention gates that SiftFunnel's encoder uses: squeeze-excitation, triplet attention, CBAM.

All keep the shape of their input, ``(N, C, H, W)`` float, and multiply it by gates in (0, 1), so that a
non-negative input stays non-negative.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_sdk.errors import ConfigError


class SqueezeExcitation(nn.Module):
    """Channel gates from global average pooling (Hu et al., arXiv 1709.01507, section 3).

    Raises:
        ConfigError: ``reduction`` leaves no hidden channel.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = channels // reduction
        if hidden < 1:
            raise ConfigError(f"reduction {reduction} leaves no hidden channel of {channels}")
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.squeeze(x.mean((2, 3), keepdim=True)).relu()
        return x * self.excite(gate).sigmoid()


class _PoolGate(nn.Module):
    """7x7 convolution over (max, mean) along dimension 1, then a sigmoid: ``(N, A, B, C)`` to ``(N, 1, B, C)``."""

    def __init__(self, *, batch_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat((x.amax(1, keepdim=True), x.mean(1, keepdim=True)), 1)
        return self.norm(self.conv(pooled)).sigmoid()


class TripletAttention(nn.Module):
    """Mean of three gated copies, one gate for each pair of C, H, W (Misra et al., arXiv 2010.03045, section 3.3)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_hw = _PoolGate(batch_norm=True)
        self.gate_cw = _PoolGate(batch_norm=True)
        self.gate_hc = _PoolGate(batch_norm=True)

    def forward(self, x: Tensor) -> Tensor:
        hw = self.gate_hw(x)
        cw = self.gate_cw(x.transpose(1, 2)).transpose(1, 2)  # pooled along H: gate (N, C, 1, W)
        hc = self.gate_hc(x.transpose(1, 3)).transpose(1, 3)  # pooled along W: gate (N, C, H, 1)
        return x * ((hw + cw + hc) / 3)


class CBAM(nn.Module):
    """Channel gates, then spatial gates (Woo et al., arXiv 1807.06521, section 3).

    Raises:
        ConfigError: ``ratio`` leaves no hidden channel.
    """

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        hidden = channels // ratio
        if hidden < 1:
            raise ConfigError(f"ratio {ratio} leaves no hidden channel of {channels}")
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=False)
        )
        self.spatial = _PoolGate(batch_norm=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True))
        x = x * pooled.sigmoid()
        return x * self.spatial(x)
