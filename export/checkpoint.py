"""Trained weights on disk: one safetensors file whose header says what they are and how they came to be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edge_sdk.errors import DataError
from edge_sdk.files import aside

from .defenses import ModelConfig, SplitModel, defense_class, model_config, recorded_settings

FORMAT = "edgesdk-checkpoint-1"
SCALE = ":scale"
"""What the name of an int8 tensor's scales ends in, one for each output channel."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights with their record.

    ``training`` holds the TrainConfig, seed, hardware, software and time; ``data`` the record of the splits;
    ``class_names`` the labels in the order of the logits; ``accuracy`` fractions in [0, 1] by part;
    ``feature_ranges`` between what nearly all features of each share lie, over training images: a uint8 wire's range.
    """

    defense: str
    config: ModelConfig
    weights: dict[str, Tensor]
    image_size: int
    class_names: tuple[str, ...]
    data: dict[str, Any]
    training: dict[str, Any]
    accuracy: dict[str, float]
    feature_ranges: tuple[tuple[float, float], ...]

    def build(self) -> SplitModel:
        """The model with these weights, ready for inference.

        Raises:
            DataError: the weights do not fit the model.
        """
        model = build_defense(self.defense, self.config)
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            raise DataError(f"weights do not fit {self.defense}: {str(error).splitlines()[-1].strip()}") from error
        return model.eval()

    @property
    def identity(self) -> str:
        """Which model it is, for the records of others."""
        return f"{self.defense} {self.weights_sha256[:16]}"

    @property
    def weights_sha256(self) -> str:
        """Hash of all weights, names, dtypes and shapes included: what an audit is of."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.weights.items()):
            content = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {content.dtype} {tuple(content.shape)}\n".encode())
            digest.update(content.numpy().tobytes())
        return digest.hexdigest()

    @property
    def settings(self) -> dict[str, Any]:
        """``config`` as JSON gives it back, for records that are written and compared."""
        return recorded_settings(self.config)

    def require(self, defense: str, backbone: str) -> None:
        """Refuse a checkpoint of another model than the one asked for.

        Raises:
            DataError: it is one.
        """
        found = (self.defense, self.config.backbone)
        if found != (defense, backbone):
            raise DataError(f"the checkpoint is {found[0]} ({found[1]}), not {defense} ({backbone})")

    def save(self, path: Path, int8: Collection[str] = ()) -> None:
        """Write the file aside, then rename it into place.

        Args:
            path: of the file.
            int8: weights to keep as int8 with a scale for each output channel, a quarter of their size: what is loaded
                is then ``rounded_to_int8`` of them.
        """
        record = asdict(replace(self, weights={}))
        del record["weights"]
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.weights.items()}
        for name in int8:
            weights[name], weights[name + SCALE] = _quantized(weights[name])
        save_tensors(path, weights, record)


def rounded_to_int8(tensor: Tensor) -> Tensor:
    """Float32, as it comes back from a file that keeps it as int8."""
    return _dequantized(*_quantized(tensor))


def _quantized(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """int8 and the scale of each output channel, float32; symmetric, so that zero stays zero."""
    rows = tensor.detach().float().flatten(1)
    scale = (rows.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return (rows / scale[:, None]).round().to(torch.int8).view(tensor.shape), scale


def _dequantized(tensor: Tensor, scale: Tensor) -> Tensor:
    return tensor.float() * scale.view(-1, *[1] * (tensor.dim() - 1))


def build_defense(defense: str, config: ModelConfig) -> SplitModel:
    """The untrained model of a defense, from torch's current random state."""
    cls: Any = defense_class(defense)
    model: SplitModel = cls(config).build()
    return model


def load_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint that ``save`` wrote.

    Raises:
        DataError: no such file, not one of ours, of another format version, or damaged.
    """
    tensors, record = load_tensors(path)
    try:
        weights = {
            name: _dequantized(tensor, tensors[name + SCALE]) if tensor.dtype == torch.int8 else tensor
            for name, tensor in tensors.items()
            if not name.endswith(SCALE)
        }
        return Checkpoint(
            defense=record["defense"],
            config=model_config(record["defense"], **record["config"]),
            weights=weights,
            image_size=record["image_size"],
            class_names=tuple(record["class_names"]),
            data=record["data"],
            training=record["training"],
            accuracy=record["accuracy"],
            feature_ranges=tuple((low, high) for low, high in record["feature_ranges"]),
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: not a model checkpoint ({error})") from error


def save_tensors(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Tensors with a JSON record in the header, written aside, then renamed into place.

    Raises:
        DataError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with aside(path) as partial:
            save_file(tensors, partial, metadata={"format": FORMAT, "record": json.dumps(record)})
    except SafetensorError as error:
        raise DataError(f"{path}: cannot be written ({error})") from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What ``save_tensors`` wrote.

    Raises:
        DataError: no such file, not one of ours, of another format version, or damaged.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise DataError(f"{path}: not an {FORMAT} file (format: {metadata.get('format', 'none')})")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["record"])  # noqa: SIM118
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise DataError(f"{path}: damaged or no safetensors file ({error})") from error
