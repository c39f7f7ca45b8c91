"""Inputs to time a model with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import TensorError
from ..tensors import Array, TensorSpec

__all__ = ["check_batch", "random_feeds"]


def check_batch(specs: Sequence[TensorSpec], batch: int) -> None:
    """Whether a model with these inputs takes a batch of this size.

    Raises:
        TensorError: its batch size is fixed at another number.
    """
    for spec in specs:
        if spec.shape[0] not in (None, batch):
            raise TensorError(
                f"this bundle is exported for batch {spec.shape[0]}, {batch} was asked for; export with --batch dynamic"
            )


def random_feeds(specs: tuple[TensorSpec, ...], batch: int, seed: int = 0) -> dict[str, Array]:
    """Uniform random arrays: whole numbers 0 to 255 for uint8, else in [0, 1).

    Raises:
        TensorError: as for ``check_batch``.
    """
    check_batch(specs, batch)
    random = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in specs:
        shape = (batch, *(size or 0 for size in spec.shape[1:]))
        if spec.dtype == "UINT8":
            feeds[spec.name] = random.integers(0, 256, shape, np.uint8)
        else:
            feeds[spec.name] = random.random(shape).astype(spec.numpy_dtype)
    return feeds
