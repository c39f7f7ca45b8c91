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
from torch.nn import functional

from edge_sdk.errors import ConfigError

from . import defense_class, model_config
from .base import Batch, ModelConfig, Objective, SplitModel
from .noise import GaussianNoise


class FSInfoGuard:
    """Another defense's model with its encoder frozen and calibrated noise on every share."""

    paper = "FSInfoGuard, arXiv 2504.10016"

    @dataclass(frozen=True, kw_only=True)
    class Config(ModelConfig):
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
        label_smoothing: float = 0.1

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.sigma or min(self.sigma) <= 0:
                raise ConfigError(
                    f"sigma must be positive for every share, got {list(self.sigma)}; --base CHECKPOINT with "
                    "--fsinfo-target or --psnr-ceiling calibrates it"
                )
            if not 0 <= self.label_smoothing < 1:
                raise ConfigError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")

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
        base: SplitModel = cls(model_config(config.base, **{**config.base_settings, **shared})).build()
        if base.noise is not None:
            raise ConfigError(f"{config.base} draws noise already")
        if len(config.sigma) != len(base.tails):
            raise ConfigError(f"{config.base} has {len(base.tails)} shares, sigma is for {len(config.sigma)}")
        return SplitModel(FrozenEncoder(base.edge), list(base.tails), base.fusion, GaussianNoise(config.sigma))

    def loss(self, model: SplitModel, batch: Batch) -> Objective:
        """Cross-entropy in nats, under the noise, against smoothed labels."""
        logits = model(batch.images).float()
        loss = functional.cross_entropy(logits, batch.labels, label_smoothing=self.config.label_smoothing)
        return Objective({"cross_entropy": loss}, logits)


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
