"""The images of an audit: the attackers' own, those that they choose by, and those that they are judged on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..data import Splits
from .metrics.fsinfo import Prior


@dataclass(frozen=True)
class AuditImages:
    """uint8 ``(N, 3, H, W)`` of the parts of a data set."""

    auxiliary: Tensor
    validation: Tensor
    test: Tensor

    @classmethod
    def of(cls, splits: Splits) -> AuditImages:
        parts = (splits.auxiliary, splits.validation, splits.test)
        return cls(*(torch.from_numpy(part.pixels).permute(0, 3, 1, 2).contiguous() for part in parts))

    @cached_property
    def prior(self) -> Prior:
        """What the attackers know of images before they see any features: the covariance of their own."""
        return Prior.of(self.auxiliary.float() / 255)


def sample_rows(total: int, count: int) -> Tensor:
    """``count`` of ``total`` rows at most, int64: the first of one fixed random order, so that all audits attack the
    same images, and an attack on a few attacks those that others meet too."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count]


def sample(images: Tensor, count: int) -> Tensor:
    """``count`` of the images at most."""
    return images[sample_rows(len(images), count)]
