"""Accuracy, bytes and speed of a bundle's precisions on ONNX Runtime.

Encoder and tails run in one process, on every image of a folder with CLASS/ sub-folders; the times of a batch of 1 are
measured in turns.

    python tools/precision.py BUNDLE IMAGES [--n 8000] [--threads 1]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge_sdk.bundle import EDGE, Part, PartyBundle, open_party, parties
from edge_sdk.cli.tables import print_table
from edge_sdk.errors import EdgeSDKError
from edge_sdk.images import decode_image, find_images, fit_image
from edge_sdk.profile.machine import Machine
from edge_sdk.progress import track
from edge_sdk.tensors import Array
from export.placement import Chain

BATCH = 100
ROUNDS = 200


class Bundle:
    """All parts of a bundle in one precision, in this process."""

    def __init__(self, folders: Sequence[PartyBundle], precision: str, threads: int) -> None:
        self.precision = precision
        owned = {part.name: (part, folder) for folder in folders for part in folder.manifest.parts if part.file}
        self._parts = [owned[part.name][0] for part in folders[0].manifest.parts]
        self._files = {name: folder.onnx(part, precision) for name, (part, folder) in owned.items()}
        self._chain = Chain(self._parts, self._files, threads)
        self._random = np.random.default_rng(0)

    def logits(self, images: Array) -> Array:
        """Of images uint8 ``(N, H, W, 3)``."""
        noise = {
            spec.name: self._random.standard_normal((len(images), *(size or 0 for size in spec.shape[1:])), np.float32)
            for spec in self._parts[0].inputs
            if spec.source == "normal"
        }
        return self._chain.run(images, noise)[self._chain.answer]

    def size(self, of_the_device: bool) -> int:
        """Bytes of the files of the device, or of all servers."""
        return sum(len(self._files[p.name]) for p in self._parts if (p.placement == EDGE) == of_the_device)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--n", type=int, help="images, evenly spaced; default: all")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    try:
        run(arguments.bundle, arguments.images, arguments.n, arguments.threads)
    except EdgeSDKError as error:
        sys.exit(f"precision: {error}")


def run(bundle: Path, images: Path, count: int | None, threads: int) -> None:
    """One row a precision."""
    folders = [open_party(path) for path in parties(bundle)]
    encoder: Part = folders[0].manifest.parts[0]
    chains = [Bundle(folders, precision, threads) for precision in ("fp32", *encoder.variants)]
    found = find_images([images])
    rows = np.linspace(0, len(found) - 1, min(count or len(found), len(found))).round().astype(int)
    labels = {name: i for i, name in enumerate(folders[0].manifest.labels)}
    size = tuple(encoder.inputs[0].shape[1:3])
    right, same = np.zeros(len(chains), int), np.zeros(len(chains), int)
    for part in track(np.array_split(rows, max(len(rows) // BATCH, 1)), max(len(rows) // BATCH, 1), "classifying"):
        pixels = np.stack([fit_image(decode_image(found[i].path), *size) for i in part])
        truth = np.array([labels.get(found[i].label or "", -1) for i in part])
        answers = [chain.logits(pixels).argmax(1) for chain in chains]
        right += [int((answer == truth).sum()) for answer in answers]
        same += [int((answer == answers[0]).sum()) for answer in answers]
    times = _times(chains, pixels[:1])
    medians = np.median(times, 0)
    print_table(
        f"{folders[0].manifest.defense}: {len(rows)} images of {images}; whole chain, batch 1, {threads} thread(s), "
        f"{ROUNDS} rounds in turns\n{Machine.here()}",
        ["precision", "accuracy", "points to fp32", "same answer", "device bytes", "server bytes", "ms", "to fp32"],
        [
            [
                chain.precision,
                f"{right[i] / len(rows):.2%}",
                f"{(right[i] - right[0]) / len(rows) * 100:+.2f}",
                f"{same[i] / len(rows):.2%}",
                f"{chain.size(True):,}",
                f"{chain.size(False):,}",
                f"{medians[i]:.3f}",
                f"{np.median(times[:, i] / times[:, 0]):.2f}",
            ]
            for i, chain in enumerate(chains)
        ],
    )


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
