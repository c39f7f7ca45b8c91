"""Dropout of features on the device, in training and in use: a baseline."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.errors import ConfigError

from .base import SplitModel
from .noise import FeatureDropout
from .none import Undefended


class Dropout(Undefended):
    """The undefended split with random features set to zero (He et al., IEEE Internet of Things J. 8(12), 2021)."""

    paper = "He et al., IEEE Internet of Things J. 8(12), 2021"

    @dataclass(frozen=True, kw_only=True)
    class Config(Undefended.Config):
        """``rate`` is the share of the features that an image loses.

        Raises:
            ConfigError: ``rate`` is not between 0 and 1.
        """

        rate: float = 0.5

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 < self.rate < 1:
                raise ConfigError(f"rate must be between 0 and 1, got {self.rate}")

    config: Config

    def build(self) -> SplitModel:
        """The backbone, cut, with dropout of what leaves the device."""
        model = super().build()
        model.noise = FeatureDropout(self.config.rate)
        return model
