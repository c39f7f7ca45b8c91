"""What an attacker has, and what an attack is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

Features = tuple[Tensor, ...]
"""What the attacker sees of a batch of images: one float32 tensor ``(N, ...)`` for each share."""

Rebuild = Callable[[Features], Tensor]
"""Features of a batch to images ``(N, 3, H, W)`` in [0, 1], on the CPU."""

Progress = Callable[[int, int], None]
"""Called with the steps done and in all."""


class View(Protocol):
    """What the attacked model shows of an image, to an attacker who has a copy of it.

    Both take images ``(N, 3, H, W)`` float in [0, 1].

    Attributes:
        device: where the attacker computes.
        noise: standard deviation of the Gaussian noise on each share; None where there is none.
        drops: whether features are set to zero at random, so that a zero says nothing.
    """

    @property
    def device(self) -> torch.device: ...

    @property
    def noise(self) -> tuple[float, ...] | None: ...

    @property
    def drops(self) -> bool: ...

    def observe(self, images: Tensor) -> Features:
        """Exactly what the servers under attack receive, as they unpack it; noise is drawn anew.

        Args:
            images: on the CPU; the result is on ``device``.
        """

    def features(self, images: Tensor) -> Features:
        """The same without noise and rounding, differentiable, of images on ``device``."""


class Attack(Protocol):
    """An attacker's method; what it learns, it learns from images of its own."""

    name: str

    def fit(self, view: View, images: Tensor, state: Path | None, progress: Progress) -> Rebuild:
        """Prepare the attack.

        Args:
            view: of the model.
            images: the attacker's own, uint8 ``(N, 3, H, W)``, which the model was not trained on.
            state: a file to continue from and to keep the progress in; None keeps none.
            progress: of the preparation.
        """
