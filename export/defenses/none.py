"""The undefended baseline: a backbone cut after one of its blocks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from edge_sdk.errors import ConfigError

from ..models import build_backbone
from .base import Batch, CrossEntropyConfig, Normalize, Objective, SplitModel


class Undefended:
    """Plain split inference (Kang et al., Neurosurgeon, ASPLOS 2017): the features leave as they are."""

    paper = "Kang et al., Neurosurgeon, ASPLOS 2017"
    calibrated = False

    @dataclass(frozen=True, kw_only=True)
    class Config(CrossEntropyConfig):
        """``split`` is the number of backbone blocks on the device; None takes the backbone's default."""

        split: int | None = None

    def __init__(self, config: Config) -> None:
        self.config = config
        self.adversaries = nn.ModuleList()

    def build(self) -> SplitModel:
        """The backbone, cut.

        Raises:
            ConfigError: ``split`` leaves no block on the device, or is more than there are.
        """
        config = self.config
        backbone = build_backbone(config.backbone, config.num_classes)
        split = backbone.default_split if config.split is None else config.split
        if not 1 <= split <= len(backbone.blocks):
            raise ConfigError(f"split must be 1 to {len(backbone.blocks)} for {config.backbone}, got {split}")
        edge = nn.Sequential(Normalize(config.mean, config.std), *backbone.blocks[:split])
        return SplitModel(edge, [nn.Sequential(*backbone.blocks[split:], backbone.classifier)])

    def loss(self, model: SplitModel, batch: Batch) -> Objective:
        """The cross-entropy."""
        logits = model(batch.images)
        return Objective({"cross_entropy": self.config.cross_entropy(logits, batch.targets)}, logits)
