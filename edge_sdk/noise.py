"""The noise that a defense adds on the device."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import DeviceError
from .tensors import Array, TensorSpec

__all__ = ["draw_noise"]


def draw_noise(specs: Sequence[TensorSpec], batch: int) -> dict[str, Array]:
    """Standard normal numbers for one request, by tensor name, all from the system's own generator.

    A server knows what noise a feature got that is zero without it. From numpy's generators, however seeded, it might
    so find the rest of the request's.

    Args:
        specs: of the inputs whose ``source`` is ``normal``.
        batch: images in the request.

    Raises:
        DeviceError: the system gives no random numbers.
    """
    noise: dict[str, Array] = {}
    for spec in specs:
        shape = [batch if size is None else size for size in spec.shape]
        noise[spec.name] = _normal(int(np.prod(shape))).reshape(shape).astype(spec.numpy_dtype)
    return noise


def _normal(count: int) -> NDArray[np.float64]:
    """By Box and Muller (Annals of Mathematical Statistics 29(2), 1958), as far out as 8.6."""
    pairs = -(-count // 2)
    try:
        drawn = np.frombuffer(os.urandom(16 * pairs), np.uint64)
    except (NotImplementedError, OSError) as error:
        raise DeviceError(f"the system gives no random numbers, and without noise nothing is sent: {error}") from error
    uniform = ((drawn >> np.uint64(11)) + 1) * 2.0**-53  # in (0, 1], each of as many as a float64 tells apart
    radius, angle = np.sqrt(-2 * np.log(uniform[:pairs])), 2 * np.pi * uniform[pairs:]
    return np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))[:count]
