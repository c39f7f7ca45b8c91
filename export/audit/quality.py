"""How close a rebuilt image is to the original: lower is more private."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from edge_sdk.errors import needs_extra

LEAST_MSE = 1 / (12 * 255**2)
"""What rounding to 8 bits leaves: a smaller error is none."""


def mse(images: Tensor, rebuilt: Tensor) -> Tensor:
    """Mean squared error of each image, ``(N,)``.

    Args:
        images: ``(N, ...)`` in [0, 1].
        rebuilt: the same shape.
    """
    return (images - rebuilt).square().flatten(1).mean(1)


def psnr(images: Tensor, rebuilt: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, ``(N,)``; 58.9 at most, where 8 bits tell no difference.

    Args:
        images: ``(N, ...)`` in [0, 1].
        rebuilt: the same shape.
    """
    return -10 * mse(images, rebuilt).clamp_min(LEAST_MSE).log10()


def ssim(images: Tensor, rebuilt: Tensor) -> Tensor:
    """Structural similarity of each image, ``(N,)``, at most 1.

    With the Gaussian window of 11x11 pixels, sigma 1.5 (Wang et al., IEEE Trans. Image Processing 13, 2004).

    Args:
        images: ``(N, 3, H, W)`` in [0, 1], H and W at least 11.
        rebuilt: the same shape.

    Raises:
        MissingExtra: scikit-image is not installed.
    """
    with needs_extra("audit", "structural similarity"):
        from skimage.metrics import structural_similarity
    values = [
        structural_similarity(
            a, b, data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in zip(images.numpy(), rebuilt.numpy(), strict=True)
    ]
    return Tensor(np.array(values, np.float32))
