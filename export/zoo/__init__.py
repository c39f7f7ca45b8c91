"""Small trained models that ship with the package, each a folder with weights and a model card."""

from __future__ import annotations

from pathlib import Path

from edge_sdk.errors import ConfigError

from ..checkpoint import Checkpoint, load_checkpoint
from ..defenses import DEFENSES

_HERE = Path(__file__).parent


def zoo_model(defense: str, backbone: str) -> Path:
    """The weights of the shipped model.

    Raises:
        ConfigError: none is shipped for these; the message lists those that are.
    """
    path = _HERE / f"{defense}-{backbone}" / "model.safetensors"
    if not path.is_file():
        shipped = sorted(folder.parent.name for folder in _HERE.glob("*/model.safetensors"))
        raise ConfigError(
            f"no model is shipped for {defense} with {backbone} (shipped: {', '.join(shipped) or 'none'}); "
            "train one and give it to --checkpoint"
        )
    return path


def shipped_audits(backbone: str) -> list[Path]:
    """Those of the shipped models with that backbone, of others that were trained to be compared with them, and of a
    shipped encoder at several levels of noise."""
    places = (f"*-{backbone}/audit.json", f"compared/*-{backbone}.json", f"levels/*-{backbone}-*.json")
    return [path for place in places for path in sorted(_HERE.glob(place))]


def named_checkpoint(name: str, backbone: str) -> Checkpoint:
    """The shipped model of a defense's name, with that backbone; or what lies at a path.

    Raises:
        ConfigError: none is shipped for these.
        DataError: no such file, or no checkpoint.
    """
    return load_checkpoint(zoo_model(name, backbone) if name in DEFENSES else Path(name))
