"""The scale of features that knows no outliers."""

from __future__ import annotations

import torch
from torch import Tensor


def typical(z: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel of ``(N, C, ...)``, as ``(C, 1, ...)``: the median, and the median distance of those not at it.

    So a funnel's rare features far from all others count no more than others do, and of features that are mostly zero
    those that are not. A channel that never varies has a distance of 1.
    """
    shape = (-1, *[1] * (z.dim() - 2))
    each, varies = (t.transpose(0, 1).flatten(1) for t in (z, varying(z)))
    middle = varies.nanmedian(1).values
    middle = middle.where(middle.isfinite(), each.median(1).values)
    apart = (varies - middle[:, None]).abs()
    deviation = apart.where(apart > 0, torch.nan).nanmedian(1).values.nan_to_num(1.0)
    return middle.view(shape), deviation.view(shape)


def varying(z: Tensor) -> Tensor:
    """Features ``(N, ...)``, with nan where they are the same for all images: what is not sent stands among zeros."""
    return z.where((z != z[:1]).any(0), torch.nan)
