"""The defenses by name, each in a module of its own that cites its paper."""

from __future__ import annotations

from importlib import import_module

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
]

DEFENSES = {
    "none": "none:Undefended",
    "siftfunnel": "siftfunnel:SiftFunnel",
    "privdfs": "privdfs:PrivDFS",
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
