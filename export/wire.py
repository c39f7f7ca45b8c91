"""What the features travel as: float32, float16, or uint8 with a scale; packed and unpacked in the graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

WireDtype = Literal["float32", "float16", "uint8"]


@dataclass(frozen=True)
class Wire:
    """The form one share travels in; ``low`` and ``high`` bound what uint8 can express, in feature units."""

    dtype: WireDtype
    low: float = 0.0
    high: float = 1.0

    @property
    def step(self) -> float:
        """Feature units per uint8 step."""
        return max(self.high - self.low, 1e-12) / 255

    def pack(self, z: Tensor) -> Tensor:
        """Float32 features as they are sent."""
        if self.dtype == "float16":
            return z.to(torch.float16)
        if self.dtype == "uint8":
            return ((z - self.low) / self.step).round().clamp(0, 255).to(torch.uint8)
        return z

    def unpack(self, sent: Tensor) -> Tensor:
        """Float32 features from what was sent."""
        if self.dtype == "uint8":
            return sent.float() * self.step + self.low
        return sent.float()
