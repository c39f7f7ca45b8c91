"""Whether the exported files compute what torch computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_sdk.bundle import Part
from edge_sdk.errors import BackendError
from edge_sdk.files import cache_folder
from edge_sdk.images import decode_image, find_images, fit_image
from edge_sdk.tensors import Array

from .data import image_folder
from .data.cifar import ARCHIVES
from .placement import Chain
from .recipes import check_image_size
from .shipped import ShippedGraphs

PARITY_IMAGES = 64


class ParityImages(NamedTuple):
    """uint8 ``(N, H, W, 3)`` and where they are from, for the record."""

    pixels: NDArray[np.uint8]
    source: str


def parity_images(data: str | None, image_size: int, seed: int = 0) -> ParityImages:
    """Images to compare torch and ONNX on: evenly spaced ones of a data set, else seeded uniform noise.

    Args:
        data: as for ``load_splits``; None takes a CIFAR archive that was fetched before, if there is one.
        image_size: height and width in pixels.
        seed: of the noise.

    Raises:
        ConfigError: the image size is not a multiple of 16.
        DataError: ``data`` holds no readable image.
    """
    check_image_size(image_size)
    if data is None:
        data = next((name for name, each in ARCHIVES.items() if (cache_folder() / each.file).exists()), None)
    if data is None:
        pixels = np.random.default_rng(seed).integers(0, 256, (PARITY_IMAGES, image_size, image_size, 3), np.uint8)
        return ParityImages(pixels, f"uniform noise, seed {seed}")
    folder = image_folder(data)
    found = find_images([folder])
    rows = np.linspace(0, len(found) - 1, min(PARITY_IMAGES, len(found))).round().astype(int)
    images = [fit_image(decode_image(found[row].path), image_size, image_size) for row in rows]
    return ParityImages(np.stack(images), f"{len(images)} real images of {folder.name}")


def compare(
    graphs: ShippedGraphs, parts: Sequence[Part], files: Mapping[str, bytes], images: ParityImages, limit: float | None
) -> dict[str, Any]:
    """Run torch and ONNX Runtime on the same images.

    Args:
        graphs: the torch side.
        parts: of the placement graph.
        files: ONNX by part.
        images: to compare on.
        limit: of the largest difference; None sets none.

    Returns:
        The largest absolute differences of features (in units as sent) and logits, and the share of images with the
        same answer, as the manifest records them.

    Raises:
        BackendError: ONNX Runtime refuses a part, gives a number that is not finite, or differs by more than ``limit``.
    """
    model, _, edge, tails = graphs
    names, features, logits, same = graphs.names, 0.0, 0.0, 0
    chain = Chain(parts, files)
    batch = chain.batch or len(images.pixels)
    for start in range(0, len(images.pixels), batch):
        pixels = images.pixels[start : start + batch]
        drawn = graphs.draw_noise(torch.from_numpy(pixels))
        found = chain.run(pixels, graphs.named(drawn))
        with torch.no_grad():
            shares = edge(torch.from_numpy(pixels), drawn)
            outputs = [tail(share) for tail, share in zip(tails, shares, strict=True)]
            answer = model.fuse(outputs)
        for name, share in zip(names.shares, shares, strict=True):
            features = _worse(features, share, found[name])
        for name, output in (*zip(names.outputs, outputs, strict=True), (chain.answer, answer)):
            logits = _worse(logits, output, found[name])
        same += int((answer.numpy().argmax(1) == found[chain.answer].argmax(1)).sum())
    record = {
        "images": images.source,
        "num_images": len(images.pixels),
        "max_abs_difference": {"features": features, "logits": logits},
        "same_answer": same / len(images.pixels),
        "limit": limit,
        "between": "torch and ONNX Runtime on the CPU",
    }
    worst = float(np.maximum(features, logits))
    if not np.isfinite(worst) or (limit is not None and worst > limit):
        raise BackendError(
            f"the exported model differs from torch by {worst:.2e}, more than {limit or np.inf:g}; nothing was "
            "written. Report it with the model's settings"
        )
    return record


def _worse(sofar: float, torchs: Tensor, ours: Array) -> float:
    """The larger of a difference and that of two tensors; NaN stays NaN."""
    return float(np.maximum(sofar, np.abs(torchs.double().numpy() - ours.astype(np.float64)).max()))
