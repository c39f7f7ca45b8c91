"""The defenses by name, each in a module of its own that cites its paper."""

from __future__ import annotations

from importlib import import_module

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
    "defense_class",
    "model_config",
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
