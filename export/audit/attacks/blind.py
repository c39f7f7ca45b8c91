"""The floor: an attacker who sees nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .base import Features, Progress, Rebuild, View


@dataclass(frozen=True)
class BlindAttack:
    """Answers the mean of its own images, whatever it is shown: the best guess, in squared error, without features."""

    name: str = "blind"

    def fit(self, view: View, images: Tensor, state: Path | None, progress: Progress) -> Rebuild:
        mean = images.float().mean(0) / 255

        def rebuild(seen: Features) -> Tensor:
            return mean.expand(len(seen[0]), *mean.shape).clone()

        return rebuild
