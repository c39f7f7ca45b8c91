"""Accuracy of a bundle with several servers: with every answer, and with each, and any two, of them missing.

    python tools/missing_shares.py BUNDLE IMAGES [--n N]

Runs the bundle's own ONNX files, in the order and with the flags that the runtime feeds them where a server is missing
(`--on-missing degrade`), over images in CLASS/ folders. The last rows have one server's answer alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from chains import drawn, labelled_batches

from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.bundle import EDGE, PartyBundle, open_party, parties
from edge_sdk.cli.tables import print_table
from edge_sdk.errors import EdgeSDKError
from edge_sdk.tensors import Array
from export.placement import Chain


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--n", type=int, help="images, evenly spaced; default: all")
    arguments = parser.parse_args()
    try:
        report(arguments.bundle, arguments.images, arguments.n)
    except EdgeSDKError as error:
        sys.exit(f"missing_shares: {error}")


def report(bundle: Path, images: Path, count: int | None) -> None:
    """Print the table."""
    folders = parties(bundle)
    if len(folders) < 3:
        sys.exit(f"missing_shares: {bundle}: not a bundle with several servers; give the folder that holds edge/")
    edge, *servers = (open_party(folder) for folder in folders)
    fusion = edge.manifest.parts[-1]
    flags = next((spec for spec in fusion.inputs if spec.source == "received"), None)
    if fusion.placement != EDGE or flags is None:
        sys.exit(f"missing_shares: {bundle}: needs every server's answer")
    outputs, labels = answers([edge, *servers], images, count)
    everyone = range(len(servers))
    cases = [("all", set(everyone))]
    cases += [
        (f"without {_names(gone)}", set(everyone) - set(gone)) for n in (1, 2) for gone in combinations(everyone, n)
    ]
    cases += [(f"{_names([k])} alone", {k}) for k in everyone]
    rows, best = [], None
    with OnnxRuntimeBackend(edge.onnx(fusion)) as backend:
        for name, here in cases:
            received = np.tile(np.array([k in here for k in everyone], np.float32), (len(labels), 1))
            feeds = {key: value * (k in here) for k, (key, value) in enumerate(outputs.items())}
            logits = backend.run({**feeds, flags.name: received})[fusion.outputs[0].name]
            accuracy = float((logits.argmax(1) == labels).mean())
            best = accuracy if best is None else best
            rows.append([name, f"{accuracy:.2%}", f"{(accuracy - best) * 100:+.2f}"])
    print_table(f"{len(labels)} images of {images}", ["answers", "accuracy", "points"], rows)


def answers(folders: Sequence[PartyBundle], images: Path, count: int | None) -> tuple[dict[str, Array], Array]:
    """Every server's output over the images, by tensor name, and the labels."""
    chain, random = Chain.of_bundle(folders), np.random.default_rng(0)
    names = [spec.name for folder in folders[1:] for spec in folder.manifest.parts[0].outputs]
    outputs: dict[str, list[Array]] = {name: [] for name in names}
    labels = []
    for pixels, truth in labelled_batches(folders[0], images, count):
        known = chain.run(pixels, drawn(folders[0], len(pixels), random))
        for name in names:
            outputs[name].append(known[name])
        labels.append(truth)
    return {name: np.concatenate(values) for name, values in outputs.items()}, np.concatenate(labels)


def _names(servers: Iterable[int]) -> str:
    return " and ".join(f"server{k}" for k in servers)


if __name__ == "__main__":
    main()
