"""The noise that a defense adds on the device."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np

from .tensors import Array, TensorSpec

__all__ = ["draw_noise"]


def draw_noise(specs: Sequence[TensorSpec], batch: int) -> dict[str, Array]:
    """Standard normal numbers for one request, by tensor name, from a generator that the system's entropy seeds.

    Args:
        specs: of the inputs whose ``source`` is ``normal``.
        batch: images in the request.

    Raises:
        NotImplementedError: the system has no entropy.
    """
    if not specs:
        return {}
    # A generator for each request: who learns one's numbers can follow it to no other.
    random = np.random.default_rng(secrets.randbits(256))
    noise: dict[str, Array] = {}
    for spec in specs:
        shape = [batch if size is None else size for size in spec.shape]
        noise[spec.name] = random.standard_normal(shape, dtype=np.float32).astype(spec.numpy_dtype)
    return noise
