"""How close a rebuilt image is to the original."""

from __future__ import annotations

from torch import Tensor


def psnr(images: Tensor, rebuilt: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, ``(N,)``; infinite where the two are equal.

    Args:
        images: ``(N, ...)`` in [0, 1].
        rebuilt: the same shape.
    """
    error = (images - rebuilt).square().flatten(1).mean(1)
    return -10 * error.log10()
