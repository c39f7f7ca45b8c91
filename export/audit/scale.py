"""The scale of features that knows no outliers."""

from __future__ import annotations

import torch
from torch import Tensor


def typical_deviation(z: Tensor) -> Tensor:
    """Of each channel of ``(N, C, ...)``, as ``(C, 1, ...)``: the median distance from its median, of those not at it.

    So neither a channel's scale nor its offset changes it, nor a funnel's rare features far from all others, and of
    features that are mostly zero those count that are not. 1 for a channel that never varies.
    """
    each = z.transpose(0, 1).flatten(1)
    apart = (each - each.median(1, keepdim=True).values).abs()
    typical = apart.where(apart > 0, torch.nan).nanmedian(1).values.nan_to_num(1.0)
    return typical.view(-1, *[1] * (z.dim() - 2))
