"""SiftFunnel: few features, as independent of the image as accuracy allows (arXiv 2501.00824).

The layers and the objective's weights follow the authors' public reference implementation; the paper's text has the
idea. Where the reference runs a stage and throws its result away (ResNet's first), this does not pay for it. [ours]
marks what neither states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from edge_sdk.errors import ConfigError

from ..models import build_backbone
from ..models.attention import CBAM, SqueezeExcitation, TripletAttention
from ..models.backbone import conv_bn_relu
from ..models.resnet18 import BasicBlock
from .base import Batch, ModelConfig, Objective, SplitModel, input_layer
from .losses import channel_correlation, distance_correlation, feature_l1, smoothed_kl


class _Design(NamedTuple):
    """The encoder of one backbone and what of the backbone stays in the cloud."""

    stem: list[nn.Module]
    width: int  # channels after the stem
    funnel: list[nn.Module]
    channels: int  # that leave the device
    se_reduction: int
    cbam_ratio: int
    wide: int  # channels after widening
    rest: list[nn.Module]  # what of the backbone's first remaining stage follows the widening
    next_block: int


class SiftFunnel:
    """Funnel encoder with attention, widening tail, and correlation constraints between image and features."""

    paper = "SiftFunnel, arXiv 2501.00824"
    calibrated = False

    @dataclass(frozen=True, kw_only=True)
    class Config(ModelConfig):
        """Weights of the objective's terms, named as in the paper; ``smoothing`` is the label smoothing.

        ``funnel_pool=False`` leaves out the cnn funnel's own pooling, and the widening strides instead: at 32x32 the
        features are then 12x16x16, as the paper's are at its 64x64 [ours].

        ``convolutions`` 3x3 of the stem's width and then ``blocks`` residual ones come before the funnel: the former
        before its pooling if it has any, the latter after it, where they cost less [ours]. Depth makes few features
        worth more to the tail and less to an attacker. ``standardize`` takes each image's own brightness and contrast
        out first [ours]. ``bounded`` holds every channel to one scale, after the attention too, and cuts it off at
        three deviations [ours]: else a long training hides from the correlation, whose distances a rare value far out
        decides, while the channels that the tail reads shrink to a thousandth or die.

        Raises:
            ConfigError: a negative weight, smoothing outside [0, 1), ``convolutions`` or ``blocks`` outside 0 to 16,
                or ``funnel_pool=False`` for a backbone whose funnel has no pooling.
        """

        alpha: float = 5.0  # KL(smooth(y) || softmax)
        beta: float = 2.0  # distance correlation of image and features
        gamma: float = 2.0  # squared Pearson correlation between channels
        lambda_l1: float = 0.03  # mean absolute feature
        smoothing: float = 0.25
        funnel_pool: bool = True
        convolutions: int = 0
        blocks: int = 0
        standardize: bool = False
        bounded: bool = False

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.backbone not in _DESIGNS:
                raise ConfigError(
                    f"siftfunnel has no encoder for {self.backbone}; it has {', '.join(sorted(_DESIGNS))}"
                )
            for name in ("alpha", "beta", "gamma", "lambda_l1"):
                if getattr(self, name) < 0:
                    raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
            if not 0 <= self.smoothing < 1:
                raise ConfigError(f"smoothing must be in [0, 1), got {self.smoothing}")
            for name in ("convolutions", "blocks"):
                if not 0 <= getattr(self, name) <= 16:
                    raise ConfigError(f"{name} must be 0 to 16, got {getattr(self, name)}")
            if not self.funnel_pool and self.backbone != "cnn":
                raise ConfigError(f"the funnel of {self.backbone} has no pooling to leave out; only that of cnn has")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.adversaries = nn.ModuleList()

    def build(self) -> SplitModel:
        """Encoder: stem, what deepens it, funnel, attention. Tail: widening, the backbone's remaining stages."""
        config = self.config
        design = _DESIGNS[config.backbone]()
        n, wide = design.channels, design.wide
        funnel = [layer for layer in design.funnel if config.funnel_pool or not isinstance(layer, nn.MaxPool2d)]
        convolutions = [layer for _ in range(config.convolutions) for layer in conv_bn_relu(design.width, design.width)]
        if config.blocks or config.convolutions:
            pooling = [layer for layer in funnel if isinstance(layer, nn.MaxPool2d)]
            blocks = [BasicBlock(design.width, design.width, 1) for _ in range(config.blocks)]
            funnel = [*convolutions, *pooling, *blocks, *(layer for layer in funnel if layer not in pooling)]
        edge = nn.Sequential(
            input_layer(config, config.standardize),
            *design.stem,
            *funnel,
            *_mix(n, config.bounded),
            SqueezeExcitation(n, design.se_reduction),
            CBAM(n, design.cbam_ratio),
            *_one_scale(n, config.bounded),
        )
        backbone = build_backbone(config.backbone, config.num_classes)
        tail = nn.Sequential(
            nn.Conv2d(n, wide, 3, padding=1),
            *conv_bn_relu(wide, wide, stride=1 if config.funnel_pool else 2),
            TripletAttention(),
            *design.rest,
            *backbone.blocks[design.next_block :],
            backbone.classifier,
        )
        return SplitModel(edge, [tail])

    def loss(self, model: SplitModel, batch: Batch) -> Objective:
        """``alpha KL + beta dCor(x, z) + gamma R(z) + lambda mean|z|``, correlations in float32."""
        config = self.config
        features = model.features(batch.images)
        logits = model.classify(features).float()
        with torch.autocast(batch.images.device.type, enabled=False):
            z = features[0].float()
            terms = {
                "kl": config.alpha * smoothed_kl(logits, batch.targets, config.smoothing),
                "distance_correlation": config.beta * distance_correlation(batch.images, z),
                "channel_correlation": config.gamma * channel_correlation(z),
                "l1": config.lambda_l1 * feature_l1(z),
            }
        return Objective(terms, logits)


def _mix(n: int, bounded: bool) -> list[nn.Module]:
    """conv3, SiLU, conv1, conv3, conv5, ReLU, all n to n: the funnel's end for every backbone.

    ``bounded`` normalises before the ReLU, which then ends at 6: no channel can die.
    """
    last = [nn.BatchNorm2d(n, affine=False), nn.ReLU6()] if bounded else [nn.ReLU()]
    return [
        _near_identity(n, 3),
        nn.SiLU(),
        _near_identity(n, 1),
        _near_identity(n, 3),
        _near_identity(n, 5),
        *last,
    ]


def _one_scale(n: int, bounded: bool) -> list[nn.Module]:
    """Every channel with mean 0 and deviation 1, cut off at 3, if ``bounded``.

    All channels then weigh alike in the distances, however small the attention's gates made one; the epsilon is far
    below what they can shrink a channel's variance to.
    """
    return [nn.BatchNorm2d(n, eps=1e-12, affine=False), nn.Hardtanh(-3, 3)] if bounded else []


def _near_identity(n: int, kernel: int) -> nn.Conv2d:
    """A convolution that starts as the identity plus noise [ours].

    Four in a row without normalisation from torch's default initialisation pass on next to nothing, and learn slowly.
    """
    conv = nn.Conv2d(n, n, kernel, padding=kernel // 2)
    with torch.no_grad():
        noise = 0.5 * conv.weight
        nn.init.dirac_(conv.weight).add_(noise)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def _cnn() -> _Design:
    stem = [
        nn.Conv2d(3, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.MaxPool2d(2),
        nn.ReLU(),
        SqueezeExcitation(64, 32),
        TripletAttention(),
    ]
    funnel = [
        nn.Conv2d(64, 16, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 12, 1),
    ]
    return _Design(stem, 64, funnel, 12, se_reduction=4, cbam_ratio=6, wide=128, rest=[], next_block=2)


def _resnet18() -> _Design:
    stem = [
        *conv_bn_relu(3, 64),
        SqueezeExcitation(64, 16),
        TripletAttention(),
        *conv_bn_relu(64, 128, stride=2),
        *conv_bn_relu(128, 128),
        SqueezeExcitation(128, 32),
        TripletAttention(),
    ]
    funnel = [nn.Conv2d(128, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 6, 1)]
    return _Design(stem, 128, funnel, 6, se_reduction=3, cbam_ratio=3, wide=128, rest=[], next_block=3)


def _vgg16() -> _Design:
    stem = [
        *conv_bn_relu(3, 64),
        *conv_bn_relu(64, 64),
        nn.MaxPool2d(2),
        SqueezeExcitation(64, 16),
        TripletAttention(),
        *conv_bn_relu(64, 128),
        *conv_bn_relu(128, 128),
        nn.MaxPool2d(2),
        SqueezeExcitation(128, 32),
        TripletAttention(),
    ]
    funnel = [
        nn.Conv2d(128, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 4, 1),
    ]
    # The widening stands for the first two convolutions of stage 3; its third and its pooling follow [ours].
    rest = [*conv_bn_relu(256, 256), nn.MaxPool2d(2)]
    return _Design(stem, 128, funnel, 4, se_reduction=4, cbam_ratio=4, wide=256, rest=rest, next_block=3)


_DESIGNS = {"cnn": _cnn, "resnet18": _resnet18, "vgg16": _vgg16}
