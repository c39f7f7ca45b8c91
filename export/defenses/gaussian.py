"""Plain Gaussian noise on the features, the network trained with it from the start: a baseline."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.errors import ConfigError

from .base import SplitModel
from .noise import GaussianNoise
from .none import Undefended


class Gaussian(Undefended):
    """The undefended split with noise of one standard deviation (He et al., IEEE Internet of Things J. 8(12), 2021)."""

    paper = "He et al., IEEE Internet of Things J. 8(12), 2021"

    @dataclass(frozen=True, kw_only=True)
    class Config(Undefended.Config):
        """``sigma`` is the noise's standard deviation, in units of the features.

        Raises:
            ConfigError: ``sigma`` is not positive.
        """

        sigma: float = 1.0

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.sigma <= 0:
                raise ConfigError(f"sigma must be positive, got {self.sigma}")

    config: Config

    def build(self) -> SplitModel:
        """The backbone, cut, with noise on what leaves the device."""
        model = super().build()
        model.noise = GaussianNoise([self.config.sigma])
        return model
