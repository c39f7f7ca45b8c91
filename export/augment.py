"""Random flips, crops, colour changes and cut-outs of a whole batch, drawn from torch's CPU generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def augment(images: Tensor, crop_padding: int, color_jitter: float, cutout: int) -> Tensor:
    """Flip half of the images, shift each by up to ``crop_padding`` pixels (reflected), jitter its colours, cut out.

    Args:
        images: ``(N, 3, H, W)`` float in [0, 1].
        crop_padding: largest shift in pixels, less than H and W.
        color_jitter: brightness, contrast and saturation are each scaled by a factor in 1 +- this, per image.
        cutout: side in pixels of a square that takes the batch's mean colour, around a random pixel of each image
            (DeVries and Taylor, arXiv 1708.04552); 0 for none.
    """
    n, _, height, width = images.shape
    flips = _draw(n, images) < 0.5
    images = torch.where(flips[:, None, None, None], images.flip(3), images)
    if crop_padding:
        offsets = torch.randint(2 * crop_padding + 1, (2, n)).to(images.device)
        rows = offsets[0, :, None] + torch.arange(height, device=images.device)
        columns = offsets[1, :, None] + torch.arange(width, device=images.device)
        padded = functional.pad(images, (crop_padding,) * 4, mode="reflect").permute(0, 2, 3, 1)
        sample = torch.arange(n, device=images.device)[:, None, None]
        images = padded[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if color_jitter:
        brightness, contrast, saturation = (
            (1 + color_jitter * (2 * _draw(n, images) - 1)).view(n, 1, 1, 1) for _ in range(3)
        )
        images = (images * brightness).clamp(0, 1)
        images = _blend(images, _gray(images).mean((2, 3), keepdim=True), contrast)
        images = _blend(images, _gray(images), saturation)
    if cutout:
        inside = _span(n, height, cutout, images)[:, :, None] & _span(n, width, cutout, images)[:, None, :]
        images = torch.where(inside[:, None], images.mean((0, 2, 3), keepdim=True), images)
    return images


def cut_mix(images: Tensor, targets: Tensor, chance: float) -> tuple[Tensor, Tensor]:
    """Put a rectangle of another image into some, and as much of its target (CutMix: Yun et al., arXiv 1905.04899).

    Args:
        images: ``(N, 3, H, W)``.
        targets: ``(N, num_classes)``, probabilities.
        chance: of each image to get one; its area is uniform from nothing to all, around a random pixel.
    """
    if not chance:
        return images, targets
    n, _, height, width = images.shape
    other = torch.randperm(n, device="cpu").to(images.device)
    side = _draw(n, images).sqrt() * (_draw(n, images) < chance)
    rows = _span(n, height, (side * height).round().long()[:, None], images)
    columns = _span(n, width, (side * width).round().long()[:, None], images)
    inside = rows[:, :, None] & columns[:, None, :]
    share = inside.float().mean((1, 2))[:, None]
    return torch.where(inside[:, None], images[other], images), targets * (1 - share) + targets[other] * share


def _span(n: int, length: int, size: int | Tensor, like: Tensor) -> Tensor:
    """``(n, length)`` bool: ``size`` places around a random one, fewer at the ends; ``(n, 1)`` is each row's own."""
    start = torch.randint(length, (n, 1)).to(like.device) - size // 2
    place = torch.arange(length, device=like.device)
    return (place >= start) & (place < start + size)


def _draw(n: int, like: Tensor) -> Tensor:
    return torch.rand(n).to(like.device)


def _gray(images: Tensor) -> Tensor:
    """Luma of ITU-R BT.601, ``(N, 1, H, W)``."""
    weights = torch.tensor((0.299, 0.587, 0.114), device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def _blend(images: Tensor, base: Tensor, factor: Tensor) -> Tensor:
    return (base + factor * (images - base)).clamp(0, 1)
