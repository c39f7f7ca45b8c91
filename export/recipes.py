"""Whole training configurations; the papers' numbers live here and nowhere else."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from edge_sdk.errors import ConfigError

from .defenses import ModelConfig, model_config

Schedule = Literal["one_cycle", "plateau"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How one model is trained; ``model`` is the settings of its defense.

    ``one_cycle`` cycles the first beta as well, from 0.95 down to 0.85 and back, as torch does.

    Raises:
        ConfigError: a count, rate or size that cannot be trained with.
    """

    defense: str
    model: ModelConfig
    recipe: str
    epochs: int
    batch_size: int = 128
    optimizer: Literal["adam", "adamw"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    amsgrad: bool = False
    learning_rate: float
    weight_decay: float
    schedule: Schedule = "one_cycle"
    crop_padding: int = 4  # pixels at 32x32, in proportion elsewhere
    color_jitter: float = 0.0  # brightness, contrast and saturation each scaled by 1 +- this
    cutout: int = 0  # side of the square that is blanked, in pixels at 32x32, in proportion elsewhere
    cutmix: float = 0.0  # chance of an image to get a rectangle of another, and as much of its target
    distillation: float = 0.0  # share of the targets that a teacher's answers make up
    precision: Precision = "float32"
    image_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ConfigError("batch_size must be at least 2: batch normalisation needs more than one image")
        check_image_size(self.image_size)
        if not 0 <= self.color_jitter < 1:
            raise ConfigError(f"color_jitter must be in [0, 1), got {self.color_jitter}")
        if not 0 <= self.cutmix <= 1:
            raise ConfigError(f"cutmix must be in [0, 1], got {self.cutmix}")
        if not 0 <= self.distillation <= 1:
            raise ConfigError(f"distillation must be in [0, 1], got {self.distillation}")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision must be float32 or bfloat16, got {self.precision!r}")


def check_image_size(image_size: int) -> None:
    """Refuse a height and width that the backbones cannot take, or that no machine has the memory for.

    Raises:
        ConfigError: it is not a multiple of 16 from 16 to 4096.
    """
    if not 16 <= image_size <= 4096 or image_size % 16:
        raise ConfigError(f"image size must be a multiple of 16, 16 to 4096, got {image_size}")


def zoo(defense: str, model: ModelConfig) -> TrainConfig:
    """What the shipped models were trained with, the same for every defense: one cycle of AdamW."""
    return TrainConfig(
        defense=defense,
        model=model,
        recipe="zoo",
        epochs=40,
        learning_rate=3e-3,
        weight_decay=0.05,
        cutmix=0.5,
        precision="bfloat16",
    )


def siftfunnel_paper(defense: str, model: ModelConfig) -> TrainConfig:
    """The schedule of SiftFunnel's reference implementation (arXiv 2501.00824): 300 epochs at 64x64."""
    return TrainConfig(
        defense=defense,
        model=model,
        recipe="siftfunnel-paper",
        epochs=300,
        optimizer="adam",
        betas=(0.5, 0.999),
        amsgrad=True,
        learning_rate=0.01,
        weight_decay=1e-3,
        schedule="plateau",
        crop_padding=0,
        color_jitter=0.2,
        image_size=64,
    )


RECIPES = {"zoo": zoo, "siftfunnel-paper": siftfunnel_paper}


def recipe_config(
    recipe: str, defense: str, settings: dict[str, object], changes: dict[str, object | None]
) -> TrainConfig:
    """A recipe's configuration for a defense with these settings, and these fields instead of the recipe's.

    Args:
        recipe: a key of RECIPES.
        defense: its name.
        settings: of the defense.
        changes: fields of TrainConfig; None leaves the recipe's.

    Raises:
        ConfigError: no such recipe, defense or setting, or a value out of its range.
    """
    config = recipe_of(recipe, defense, model_config(defense, **settings), changes)
    if hasattr(config.model, "image_size"):  # of a model with something for each feature
        config = replace(config, model=replace(config.model, image_size=config.image_size))
    return config


def recipe_of(recipe: str, defense: str, model: ModelConfig, changes: dict[str, object | None]) -> TrainConfig:
    """A recipe's configuration for a model, with these fields instead of the recipe's.

    Raises:
        ConfigError: no such recipe, or a value out of its range.
    """
    if recipe not in RECIPES:
        raise ConfigError(f"no recipe {recipe!r}; available: {', '.join(sorted(RECIPES))}")
    config = RECIPES[recipe](defense, model)
    return replace(config, **{name: value for name, value in changes.items() if value is not None})
