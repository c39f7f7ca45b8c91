"""A training that starts from a trained model: to put a defense on it, or to go on from its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from torch import Tensor

from edge_sdk.errors import ConfigError, DataError

from .calibrate import check_target, guarded
from .checkpoint import Checkpoint, build_defense
from .data import Splits
from .defenses import defense_class, model_config


def start_from(
    base: Checkpoint,
    defense: str,
    settings: Mapping[str, object],
    splits: Splits,
    *,
    fsinfo_target: float | None = None,
    psnr_ceiling: float | None = None,
    num_images: int = 32,
    seed: int = 0,
) -> tuple[dict[str, object], dict[str, Tensor]]:
    """What a training of ``defense`` begins with.

    A defense whose noise is calibrated gets it put on the base; any other takes the base's weights, all of them, and
    what settings the two have in common.

    Args:
        base: trained.
        defense: to train.
        settings: of it that were chosen; they go before the base's.
        splits: the data that the base was trained on.
        fsinfo_target: of calibrated noise, nats a dimension.
        psnr_ceiling: of calibrated noise, dB.
        num_images: training images that are calibrated on.
        seed: of their choice.

    Returns:
        The defense's settings, and the weights to start from.

    Raises:
        DataError: ``splits`` are other parts than those of the base's training.
        ConfigError: a target without noise to calibrate, noise without one, or weights that do not fit.
    """
    check_noise(defense, fsinfo_target, psnr_ceiling)
    if splits.record() != base.data:
        raise DataError(f"{splits.name}: not the parts that the base was trained on; its training images would leak")
    cls = defense_class(defense)
    if cls.calibrated:
        found, initial = guarded(
            base, splits, fsinfo_target=fsinfo_target, psnr_ceiling=psnr_ceiling, num_images=num_images, seed=seed
        )
        return {**settings, **found}, initial
    common = {name: value for name, value in asdict(base.config).items() if name in cls.Config.__dataclass_fields__}
    chosen = {**common, **settings}
    return chosen, _weights(base, defense, chosen)


def check_noise(defense: str, fsinfo_target: float | None, psnr_ceiling: float | None) -> None:
    """Refuse targets that cannot be calibrated to, before the images are read.

    Raises:
        ConfigError: a target without noise to calibrate, noise without one, or one that no noise can meet.
    """
    if defense_class(defense).calibrated:
        check_target(fsinfo_target, psnr_ceiling)
    elif fsinfo_target is not None or psnr_ceiling is not None:
        raise ConfigError(f"--fsinfo-target and --psnr-ceiling calibrate noise; {defense} has none that is calibrated")


def _weights(base: Checkpoint, defense: str, settings: dict[str, object]) -> dict[str, Tensor]:
    """The base's, with the noise of the new model."""
    fresh = build_defense(defense, model_config(defense, **settings)).state_dict()
    weights = {**base.weights, **{name: value for name, value in fresh.items() if name.startswith("noise.")}}
    if different := sorted(fresh.keys() ^ weights.keys()):
        raise ConfigError(f"the weights of {base.defense} do not fit {defense}: {different[0]} is in one alone")
    for name, value in fresh.items():
        if weights[name].shape != value.shape:
            raise ConfigError(
                f"the weights of {base.defense} do not fit {defense} with these settings: {name} is "
                f"{list(weights[name].shape)} there, {list(value.shape)} here"
            )
    return weights
