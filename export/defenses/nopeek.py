"""NoPeek: distance correlation between image and features as a penalty, and nothing else: a baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edge_sdk.errors import ConfigError

from .base import Batch, Objective, SplitModel
from .losses import distance_correlation
from .none import Undefended


class NoPeek(Undefended):
    """The undefended split, trained to decorrelate its features from the image (Vepakomma et al., arXiv 2008.09161)."""

    paper = "NoPeek, arXiv 2008.09161"

    @dataclass(frozen=True, kw_only=True)
    class Config(Undefended.Config):
        """``alpha`` is the weight of the distance correlation against the cross-entropy.

        Raises:
            ConfigError: ``alpha`` is negative.
        """

        alpha: float = 1.0

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.alpha < 0:
                raise ConfigError(f"alpha must not be negative, got {self.alpha}")

    config: Config

    def loss(self, model: SplitModel, batch: Batch) -> Objective:
        """Cross-entropy and ``alpha dCor(x, z)``, the latter in float32."""
        (features,) = model.features(batch.images)
        logits = model.classify((features,))
        with torch.autocast(batch.images.device.type, enabled=False):
            correlation = self.config.alpha * distance_correlation(batch.images, features.float())
        terms = {"cross_entropy": self.config.cross_entropy(logits, batch.targets), "distance_correlation": correlation}
        return Objective(terms, logits)
