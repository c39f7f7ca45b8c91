"""Accuracy, bytes and speed of a bundle's precisions on ONNX Runtime.

Encoder and tails run in one process, on every image of a folder with CLASS/ sub-folders; the times of a batch of 1 are
measured in turns. Ends with exit status 1 where a lower precision's accuracy is not within the points of float32's that
this project allows it, 0.2 for float16 and 1.0 for int8, meant over 8,000 images.

    python tools/precision.py BUNDLE IMAGES [--n 8000] [--threads 1]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from chains import drawn, labelled_batches

from edge_sdk.bundle import PartyBundle, Precision, open_party, parties
from edge_sdk.cli.tables import print_table
from edge_sdk.errors import EdgeSDKError
from edge_sdk.profile.machine import Machine
from edge_sdk.tensors import Array
from export.placement import Chain

ROUNDS = 200
LIMITS: dict[Precision, float] = {"fp16": 0.2, "int8": 1.0}
"""Points that a precision's accuracy may differ by from float32's."""


class Bundle:
    """All parts of a bundle in one precision, in this process."""

    def __init__(self, folders: Sequence[PartyBundle], precision: Precision, threads: int) -> None:
        self.precision, self._folders = precision, folders
        self._chain = Chain.of_bundle(folders, precision, threads)
        self._random = np.random.default_rng(0)

    def logits(self, images: Array) -> Array:
        """Of images uint8 ``(N, H, W, 3)``."""
        noise = drawn(self._folders[0], len(images), self._random)
        return self._chain.run(images, noise)[self._chain.answer]

    def size(self, of_the_device: bool) -> int:
        """Bytes of the files of the device, or of all servers."""
        folders = self._folders[:1] if of_the_device else self._folders[1:]
        return sum(len(each.onnx(p, self.precision)) for each in folders for p in each.manifest.parts if p.file)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--n", type=int, help="images, evenly spaced; default: all")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    try:
        points = run(arguments.bundle, arguments.images, arguments.n, arguments.threads)
    except EdgeSDKError as error:
        sys.exit(f"precision: {error}")
    if lines := beyond(points):
        sys.exit("\n".join(f"precision: {line}" for line in lines))


def beyond(points: Mapping[Precision, float]) -> list[str]:
    """A line for each precision whose accuracy is further from float32's than it may be.

    Args:
        points: between the accuracies, in percentage points, by precision.
    """
    return [
        f"{name} is {points[name]:+.2f} points from float32, more than the {limit} allowed"
        for name, limit in LIMITS.items()
        if name in points and abs(points[name]) > limit
    ]


def run(bundle: Path, images: Path, count: int | None, threads: int) -> dict[Precision, float]:
    """Print one row a precision; gives the points that its accuracy is from float32's."""
    folders = [open_party(path) for path in parties(bundle)]
    precisions: tuple[Precision, ...] = ("fp32", *folders[0].manifest.parts[0].variants)
    chains = [Bundle(folders, precision, threads) for precision in precisions]
    right, same, num_images = np.zeros(len(chains), int), np.zeros(len(chains), int), 0
    for pixels, truth in labelled_batches(folders[0], images, count):
        answers = [chain.logits(pixels).argmax(1) for chain in chains]
        right += [int((answer == truth).sum()) for answer in answers]
        same += [int((answer == answers[0]).sum()) for answer in answers]
        num_images += len(pixels)
    times = _times(chains, pixels[:1])
    medians = np.median(times, 0)
    points = (right - right[0]) * 100 / num_images  # in this order 16 of 8,000 are 0.2, not a little more
    print_table(
        f"{folders[0].manifest.defense}: {num_images} images of {images}; whole chain, batch 1, {threads} thread(s), "
        f"{ROUNDS} rounds in turns\n{Machine.here()}",
        ["precision", "accuracy", "points to fp32", "same answer", "device bytes", "server bytes", "ms", "to fp32"],
        [
            [
                chain.precision,
                f"{right[i] / num_images:.2%}",
                f"{points[i]:+.2f}",
                f"{same[i] / num_images:.2%}",
                f"{chain.size(True):,}",
                f"{chain.size(False):,}",
                f"{medians[i]:.3f}",
                f"{np.median(times[:, i] / times[:, 0]):.2f}",
            ]
            for i, chain in enumerate(chains)
        ],
    )
    return {chain.precision: float(points[i]) for i, chain in enumerate(chains)}


def _times(chains: Sequence[Bundle], image: Array) -> Array:
    times = np.empty((ROUNDS, len(chains)))
    for i in range(-20, ROUNDS):
        for j, chain in enumerate(chains):
            begin = time.perf_counter()
            chain.logits(image)
            times[max(i, 0), j] = (time.perf_counter() - begin) * 1e3
    return times


if __name__ == "__main__":
    main()
