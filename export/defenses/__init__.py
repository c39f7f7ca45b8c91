"""The defenses by name, each in a module of its own that cites its paper."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from typing import Any

import msgspec

from edge_sdk.errors import ConfigError

from .base import Batch, Defense, ModelConfig, Objective, SplitModel, Unpacking

__all__ = [
    "BASELINE",
    "DEFENSES",
    "Batch",
    "Defense",
    "ModelConfig",
    "Objective",
    "SplitModel",
    "Unpacking",
    "completed_settings",
    "defense_class",
    "model_config",
    "recorded_settings",
]

DEFENSES = {
    "none": "none:Undefended",
    "siftfunnel": "siftfunnel:SiftFunnel",
    "privdfs": "privdfs:PrivDFS",
    "fsinfoguard": "fsinfoguard:FSInfoGuard",
    "gaussian": "gaussian:Gaussian",
    "dropout": "dropout:Dropout",
    "nopeek": "nopeek:NoPeek",
}
"""Name to ``module:Class`` of ``export.defenses``."""

BASELINE = "none"
"""The one whose encoder the others' cost is compared with."""


def defense_class(name: str) -> type[Defense]:
    """The class of that name.

    Raises:
        ConfigError: no such defense; the message lists those there are.
    """
    if name not in DEFENSES:
        raise ConfigError(f"no defense {name!r}; available: {', '.join(sorted(DEFENSES))}")
    module, class_name = DEFENSES[name].split(":")
    found: type[Defense] = getattr(import_module(f".{module}", __package__), class_name)
    return found


def model_config(defense: str, **settings: object) -> ModelConfig:
    """The settings of a defense, its own defaults where none is given.

    Raises:
        ConfigError: no such defense, a setting that it does not have, or a value that it refuses.
    """
    cls = defense_class(defense)
    known = cls.Config.__dataclass_fields__
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ConfigError(f"{defense} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    try:
        config: ModelConfig = msgspec.convert(settings, cls.Config)
    except msgspec.ValidationError as error:
        # A value that the settings' own check refuses comes wrapped; its message is the one to show.
        raise ConfigError(str(error.__cause__ or f"{defense}: {error}")) from error
    return config


def recorded_settings(config: ModelConfig) -> dict[str, Any]:
    """All of a model's settings as JSON gives them back, for records that are written and compared."""
    settings: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return settings


def completed_settings(defense: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A record of an older version with the defaults of the settings that it did not know.

    One that is none of this defense's is given back as it is.
    """
    try:
        return recorded_settings(model_config(defense, **settings))
    except ConfigError:
        return dict(settings)
