"""What every defense builds: a network cut into the part on the device and the parts in the cloud."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_sdk.errors import ConfigError

from ..models import BACKBONES

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What all defenses share: the backbone, the number of classes, and the normalisation of the input per channel.

    Raises:
        ConfigError: unknown backbone, fewer than two classes, a standard deviation that is not positive, or any number
            that is not finite, of a subclass's too.
    """

    backbone: str = "cnn"
    num_classes: int = 10
    mean: tuple[float, float, float] = CIFAR10_MEAN
    std: tuple[float, float, float] = CIFAR10_STD

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            for each in value if isinstance(value, tuple) else (value,):
                if isinstance(each, float) and not math.isfinite(each):
                    raise ConfigError(f"{field.name} must be finite, got {each}")
        if self.backbone not in BACKBONES:
            raise ConfigError(f"no backbone {self.backbone!r}; available: {', '.join(sorted(BACKBONES))}")
        if self.num_classes < 2:
            raise ConfigError(f"num_classes must be at least 2, got {self.num_classes}")
        if min(self.std) <= 0:
            raise ConfigError(f"std must be positive in every channel, got {self.std}")


@dataclass(frozen=True, kw_only=True)
class CrossEntropyConfig(ModelConfig):
    """What the defenses share whose loss is a cross-entropy.

    ``label_smoothing`` is the part of the target that is spread evenly over all classes (Szegedy et al., arXiv
    1512.00567, section 7).

    Raises:
        ConfigError: ``label_smoothing`` outside [0, 1).
    """

    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch, in nats and float32: logits and targets as ``Batch`` has them ``(N, num_classes)``."""
        return functional.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)


class Batch(NamedTuple):
    """``images`` ``(N, 3, H, W)`` float in [0, 1]; ``labels`` ``(N,)`` int64; ``targets`` ``(N, num_classes)`` float32.

    A target is the probability of each class: 1 for the label's, or shared with another image's where two are mixed,
    and with a teacher's answers where there is one.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor


class Objective(NamedTuple):
    """The weighted terms of a loss, whose sum is minimised, and the logits ``(N, num_classes)`` they came from."""

    terms: dict[str, Tensor]
    logits: Tensor

    @property
    def total(self) -> Tensor:
        return torch.stack(tuple(self.terms.values())).sum()


class Normalize(nn.Module):
    """``(x - mean) / std`` per channel of ``(N, 3, H, W)``."""

    formula = "(x - mean) / std per channel"

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Standardize(nn.GroupNorm):
    """Each image ``(N, 3, H, W)`` to mean 0 and deviation 1 over all its values [ours].

    Its own brightness and contrast never leave the device.
    """

    formula = "(x - mean of the image) / sqrt(variance of the image + 1e-4), over all its values"

    def __init__(self) -> None:
        super().__init__(1, 3, eps=1e-4, affine=False)


def input_layer(config: ModelConfig, standardize: bool) -> Normalize | Standardize:
    """The first layer of an encoder: by the image's own statistics, or by the data's."""
    return Standardize() if standardize else Normalize(config.mean, config.std)


class Unpacking(nn.Module):
    """The first layer of a tail, where it only puts what was received to its places: to whoever has the tail, both are
    the same."""


class SplitModel(nn.Module):
    """A cut network: ``edge`` on the device, one tail a server, and ``fusion`` on the device or None for one tail.

    ``noise`` is what the device does to the shares with numbers drawn from N(0, 1), or None: it takes the tuple of
    shares and a list of as many tensors of their shapes, and returns the noisy shares.

    ``edge`` takes images ``(N, 3, H, W)`` float in [0, 1], normalisation included, and returns one tensor or, for
    several servers, a tuple with one share each. A tail takes its share; ``fusion`` takes the list of tail outputs and
    which of them were received.
    """

    def __init__(
        self,
        edge: nn.Module,
        tails: list[nn.Module],
        fusion: nn.Module | None = None,
        noise: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if fusion is None and len(tails) != 1:
            raise ConfigError(f"{len(tails)} tails need a fusion")
        self.edge = edge
        self.tails = nn.ModuleList(tails)
        self.fusion = fusion
        self.noise = noise

    def shares(self, images: Tensor) -> tuple[Tensor, ...]:
        """The encoder's output, one tensor a server, before any noise."""
        shares: Tensor | tuple[Tensor, ...] = self.edge(images)
        return shares if isinstance(shares, tuple) else (shares,)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Exactly what leaves the device for these images, one tensor a server; noise is drawn anew."""
        shares = self.shares(images)
        if self.noise is None:
            return shares
        noisy: tuple[Tensor, ...] = self.noise(shares, [torch.randn_like(share) for share in shares])
        return noisy

    def classify(self, features: tuple[Tensor, ...], received: Tensor | None = None) -> Tensor:
        """Logits ``(N, num_classes)`` from what left the device; ``received`` as for ``fuse``."""
        return self.fuse([tail(share) for tail, share in zip(self.tails, features, strict=True)], received)

    def fuse(self, outputs: list[Tensor], received: Tensor | None = None) -> Tensor:
        """Logits from the tails' outputs; ``received`` ``(N, K)`` is 0 for those that did not arrive, None for none."""
        if self.fusion is None:
            return outputs[0]
        if received is None:
            received = torch.ones(len(outputs[0]), len(outputs), device=outputs[0].device)
        logits: Tensor = self.fusion(outputs, received)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))


class Defense(Protocol):
    """One class a paper: its settings, the model they give, and the loss it is trained with.

    ``calibrated`` says that it puts noise on a trained model, to a target that the training is given.

    ``adversaries`` are networks that the loss trains along with the model and that never ship; most have none.
    """

    paper: str
    calibrated: bool
    config: ModelConfig
    adversaries: nn.ModuleList

    def build(self) -> SplitModel:
        """The untrained model, initialised from torch's current random state."""

    def loss(self, model: SplitModel, batch: Batch) -> Objective:
        """The paper's objective on one batch."""
