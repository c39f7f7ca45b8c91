"""The undefended baseline: a backbone cut after one of its blocks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from edge_sdk.errors import ConfigError

from ..models import build_backbone
from .base import Batch, ModelConfig, Normalize, Objective, SplitModel


class Undefended:
    """Plain split inference (Kang et al., Neurosurgeon, ASPLOS 2017): the features leave as they are."""

    paper = "Kang et al., Neurosurgeon, ASPLOS 2017"

    @dataclass(frozen=True, kw_only=True)
    class Config(ModelConfig):
        """``split`` is the number of backbone blocks on the device; None takes the backbone's default.

        Raises:
            ConfigError: ``label_smoothing`` outside [0, 1).
        """

        split: int | None = None
        label_smoothing: float = 0.0  # share of the target that is spread evenly over all classes

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 <= self.label_smoothing < 1:
                raise ConfigError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")

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
        """Cross-entropy in nats against smoothed labels (Szegedy et al., arXiv 1512.00567, section 7)."""
        logits = model(batch.images).float()
        return Objective({"cross_entropy": self.cross_entropy(logits, batch.labels)}, logits)

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over the batch, in nats, labels smoothed."""
        return functional.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
