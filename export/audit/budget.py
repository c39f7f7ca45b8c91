"""How much the attackers may spend: sizes of their networks, passes over their images, images attacked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from edge_sdk.errors import ConfigError

from .attacks.base import Attack
from .attacks.blind import BlindAttack
from .attacks.diffusion import GUESS, DiffusionAttack
from .attacks.inversion import InversionAttack
from .attacks.likelihood import LikelihoodAttack


class Entry(NamedTuple):
    """One attack of an audit: of several candidates the better on validation images is the attack."""

    candidates: tuple[Attack, ...]
    num_images: int


class Budget(NamedTuple):
    """The attacks by name, and how many images the metrics are measured on."""

    attacks: dict[str, Entry]
    num_metric_images: int
    num_jacobians: int


def small(seed: int) -> Budget:
    """For two CPU cores: minutes for each attack at 32x32."""
    return Budget(
        {
            "blind": Entry((BlindAttack(),), 1000),
            "inversion": Entry(
                (
                    InversionAttack(width=64, epochs=8, seed=seed),
                    InversionAttack(decoder="transposed", width=64, epochs=8, seed=seed),
                ),
                1000,
            ),
            "likelihood": Entry((LikelihoodAttack(steps=300, restarts=1, seed=seed),), 32),
            "diffusion": Entry((DiffusionAttack(decoder=replace(GUESS, seed=seed), seed=seed),), 200),
        },
        num_metric_images=4000,
        num_jacobians=16,
    )


def full(seed: int) -> Budget:
    """For a GPU, or a night."""
    return Budget(
        {
            "blind": Entry((BlindAttack(),), 8000),
            "inversion": Entry(
                (
                    InversionAttack(width=128, epochs=40, seed=seed),
                    InversionAttack(decoder="transposed", width=128, epochs=40, seed=seed),
                ),
                8000,
            ),
            "likelihood": Entry((LikelihoodAttack(steps=2000, restarts=4, seed=seed),), 256),
            "diffusion": Entry(
                (
                    DiffusionAttack(
                        width=128,
                        condition=64,
                        epochs=200,
                        sampling_steps=100,
                        seed=seed,
                        decoder=InversionAttack(width=128, epochs=20, seed=seed),
                    ),
                ),
                1000,
            ),
        },
        num_metric_images=10_000,
        num_jacobians=200,
    )


BUDGETS: dict[str, Callable[[int], Budget]] = {"small": small, "full": full}


def budget(name: str, seed: int) -> Budget:
    """The budget of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in BUDGETS:
        raise ConfigError(f"no budget {name!r}; available: {', '.join(BUDGETS)}")
    return BUDGETS[name](seed)
