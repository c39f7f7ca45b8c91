"""FSInfoGuard: Gaussian noise calibrated to a target leakage, on top of any defense (arXiv 2504.10016).

The encoder is a trained one and stays as it is, because the noise is calibrated to its Jacobian; what follows is
fine-tuned to the noise [ours]. ``export.calibrate`` finds the noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edge_sdk.errors import ConfigError

from . import defense_class, model_config
from .base import Batch, CrossEntropyConfig, ModelConfig, Objective, SplitModel
from .noise import GaussianNoise


class FSInfoGuard:
    """Another defense's model with its encoder frozen and calibrated noise on every share."""

    paper = "FSInfoGuard, arXiv 2504.10016"
    calibrated = True

    @dataclass(frozen=True, kw_only=True)
    class Config(CrossEntropyConfig):
        """The model underneath and its noise.

        ``base`` and ``base_settings`` are the defense underneath and its own settings; ``sigma`` the standard deviation
        of the noise on each share, in units of the features; ``fsinfo_target`` in nats a dimension or
        ``psnr_ceiling`` in dB is what it was calibrated to.

        Raises:
            ConfigError: no noise for some share, noise that is not positive, or a base that has noise of its own.
        """

        base: str = "none"
        base_settings: dict[str, Any] = field(default_factory=dict)
        sigma: tuple[float, ...] = ()
        fsinfo_target: float | None = None
        psnr_ceiling: float | None = None

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.sigma or min(self.sigma) <= 0:
                raise ConfigError(
                    f"sigma must be positive for every share, got {list(self.sigma)}; --base CHECKPOINT with "
                    "--fsinfo-target or --psnr-ceiling calibrates it"
                )

    def __init__(self, config: Config) -> None:
        self.config = config
        self.adversaries = nn.ModuleList()

    def build(self) -> SplitModel:
        """The base's model, its encoder frozen, with noise.

        Raises:
            ConfigError: the base has noise already, or another number of shares than ``sigma``.
        """
        config = self.config
        shared = {name: getattr(config, name) for name in ModelConfig.__dataclass_fields__}
        cls: Any = defense_class(config.base)
        model: SplitModel = cls(model_config(config.base, **{**config.base_settings, **shared})).build()
        if model.noise is not None:
            raise ConfigError(f"{config.base} draws noise already")
        if len(config.sigma) != len(model.tails):
            raise ConfigError(f"{config.base} has {len(model.tails)} shares, sigma is for {len(config.sigma)}")
        model.edge = FrozenEncoder(model.edge)
        model.noise = GaussianNoise(config.sigma)
        return model

    def loss(self, model: SplitModel, batch: Batch) -> Objective:
        """The cross-entropy under the noise."""
        logits = model(batch.images)
        return Objective({"cross_entropy": self.config.cross_entropy(logits, batch.targets)}, logits)


class FrozenEncoder(nn.Sequential):
    """An encoder that no training changes, its batch statistics included."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__(encoder)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenEncoder:
        super().train(False)
        return self


def guarded_weights(base: Mapping[str, Tensor], sigma: tuple[float, ...]) -> dict[str, Tensor]:
    """The weights of the base's model, named as the guarded one's."""
    renamed = {f"edge.0.{n[5:]}" if n.startswith("edge.") else n: tensor.float() for n, tensor in base.items()}
    return {**renamed, "noise.sigma": torch.tensor(sigma)}
