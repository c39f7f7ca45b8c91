"""Labelled images of a folder, as all parts of a bundle in one process take them, for the scripts beside this one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edge_sdk.bundle import PartyBundle
from edge_sdk.images import decode_image, find_images, fit_image
from edge_sdk.progress import track
from edge_sdk.tensors import Array

BATCH = 100


def labelled_batches(edge: PartyBundle, images: Path, count: int | None) -> Iterator[tuple[Array, Array]]:
    """Batches of images, uint8 ``(N, H, W, 3)``, and of their classes' numbers, int64 ``(N,)``; shows progress.

    Args:
        edge: whose classes and image size count.
        images: a folder with CLASS/ sub-folders.
        count: of images, evenly spaced; None takes all.

    Raises:
        DataError: a file cannot be read.
    """
    names = edge.manifest.labels
    found = [image for image in find_images([images]) if image.label in names]
    if not found:
        sys.exit(f"{images}: no folder here is one of {', '.join(names)}")
    rows = np.linspace(0, len(found) - 1, min(count or len(found), len(found))).round().astype(int)
    height, width = (size or 0 for size in edge.manifest.parts[0].inputs[0].shape[1:3])
    parts = np.array_split(rows, -(-len(rows) // BATCH))
    for part in track(parts, len(parts), "images"):
        chosen = [found[row] for row in part]
        pixels = np.stack([fit_image(decode_image(image.path), height, width) for image in chosen])
        yield pixels, np.array([names.index(image.label) for image in chosen if image.label is not None])


def drawn(edge: PartyBundle, num_images: int, random: np.random.Generator) -> dict[str, Array]:
    """What the device draws for a batch, by name."""
    return {
        spec.name: random.standard_normal((num_images, *(size or 0 for size in spec.shape[1:])), np.float32)
        for spec in edge.manifest.parts[0].inputs
        if spec.source == "normal"
    }
