"""Fit the latency predictor to published latencies, and find its error on devices that it has not seen.

    python tools/fit_predictor.py [--count]

Prints the constants for edge_sdk/profile/predict.py, every point, and the error where each device in turn is left out
of the fit: with the prior that the fit has, which was chosen by these very errors, and with none. ``--count`` exports
the reference networks and counts their kernels anew, into reference_kernels.json.

The points are batch 1, TensorRT engines on the GPU; GPU time where a source has it apart. Sources: torch2trt's
tables (Nano, AGX Xavier); Paddle Lite's TensorRT guide (AGX Xavier, TensorRT 7.1); jetson-orin-nano-benchmarks of
hokwangchoi on GitHub (YOLOv8n); Ultralytics' Jetson guide (YOLO11); EfficientViT's tables (Nano, AGX Orin; copies
included).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from scipy.optimize import least_squares

from edge_sdk.bundle import Precision
from edge_sdk.cli.tables import print_table
from edge_sdk.profile.devices import find_device
from edge_sdk.profile.predict import Constants, Kernel, fuse_kernels, kernel_ms

KERNELS = Path(__file__).with_name("reference_kernels.json")
COVERED = 0.8


class Point(NamedTuple):
    """A published latency."""

    device: str
    mode: str
    precision: Precision
    network: str
    latency_ms: float


def _points() -> list[Point]:
    points = []
    nano = {"resnet18": 11.4, "resnet34": 20.2, "resnet50": 29.8, "resnet101": 51.1, "squeezenet1_1": 4.34,
            "densenet121": 24.8, "vgg16": 85.1, "efficientvit_b1": 24.8, "efficientvit_b2": 50.6,
            "efficientvit_b3": 101.0}  # fmt: skip
    xavier = {"resnet18": 1.64, "resnet50": 3.37, "mobilenet_v2": 1.67, "mnasnet1_0": 1.77, "shufflenet_v2": 2.43,
              "densenet121": 13.0, "vgg16": 7.46}  # fmt: skip
    orin = {"efficientvit_b1": 1.48, "efficientvit_b2": 2.63, "efficientvit_b3": 4.36, "efficientvit_b1@288": 1.82,
            "efficientvit_b3@288": 5.63}  # fmt: skip
    for device, table in (("nano", nano), ("agx-xavier", xavier), ("agx-orin-64gb", orin)):
        points += [Point(device, "MAXN", "fp16", network, ms) for network, ms in table.items()]
    points += [
        Point("agx-xavier", "MAXN", "fp16", "resnet50", 3.15),
        Point("agx-xavier", "MAXN", "int8", "resnet50", 2.27),
    ]
    yolo = {"yolov8n": (8.36, 4.43, 3.49), "yolo11n": (7.60, 4.91, 3.91), "yolo11s": (13.29, 7.30, 5.25),
            "yolo11m": (28.21, 13.99, 9.58), "yolo11x": (67.32, 32.94, 20.72)}  # fmt: skip
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    for network, latencies in yolo.items():
        points += [
            Point("orin-nano-8gb", "MAXN_SUPER", precision, network, ms)
            for precision, ms in zip(precisions, latencies, strict=True)
        ]
    return points


POINTS = _points()
START = Constants(
    efficiency=0.7, staging=3000.0, bandwidth=0.7, launch_us=5.0, cycles=5000.0, thin=0.1, tile=8000.0, moves=1.0
)
DOUBT = np.array([0.3, 1.0, 0.4, 1.0, 1.0, 0.7, 1.0, 0.7])
"""How far, in natural logarithms, each constant may well be from the start: few points must not pull it anywhere."""
TRUST = 0.6
"""Weight of a deviation of DOUBT against an error of a point. This, the start and the doubts were the best of a dozen
by the error of devices left out: that error is flattered, and is told beside the one without any prior."""


def count_kernels(only: str | None = None) -> dict[str, list[Kernel]]:
    """Of every reference network, or of one, at its size."""
    import torch
    from reference_networks import NETWORKS

    from export.cost import count_cost
    from export.onnx import to_onnx

    counted = {}
    for name, (build, size, published) in NETWORKS.items():
        if only not in (None, name):
            continue
        model = build().eval()
        for side in (size, *((288,) if name in ("efficientvit_b1", "efficientvit_b3") else ())):
            cost = count_cost(to_onnx(model, (torch.zeros(1, 3, side, side),), ["image"], ["out"], "static"))
            if side == size and not 0.97 < cost.flops / published / 1e9 < 1.03:
                sys.exit(f"fit_predictor: {name} has {cost.flops / 1e9:.2f} GFLOP, {published} is published")
            counted[name if side == size else f"{name}@{side}"] = fuse_kernels(cost.layers)
    return counted


def load_kernels() -> dict[str, list[Kernel]]:
    """What ``count_kernels`` found."""
    return msgspec.json.decode(KERNELS.read_bytes(), type=dict[str, list[Kernel]])


def predict(point: Point, kernels: dict[str, list[Kernel]], constants: Constants) -> float:
    """Milliseconds."""
    device = find_device(point.device)
    mode = device.mode(point.mode)
    return sum(kernel_ms(kernel, device, mode, point.precision, constants) for kernel in kernels[point.network])


def fit(points: Sequence[Point], kernels: dict[str, list[Kernel]], trust: float = TRUST) -> Constants:
    """Least squares of logarithms, softened against outliers, with the start as a weak prior; trust 0: none."""
    start = np.log(msgspec.structs.astuple(START))

    def residuals(logs: np.ndarray) -> np.ndarray:
        constants = Constants(*np.exp(logs))
        errors = [math.log(predict(point, kernels, constants) / point.latency_ms) for point in points]
        return np.concatenate([errors, trust * (logs - start) / DOUBT])

    found = least_squares(residuals, start, loss="soft_l1", f_scale=0.3)
    return Constants(*(float(f"{value:.4g}") for value in np.exp(found.x)))


def errors_of_unseen_devices(kernels: dict[str, list[Kernel]], trust: float = TRUST) -> dict[Point, float]:
    """Logarithm of predicted over published, each device left out of the fit that predicts it."""
    found = {}
    for device in dict.fromkeys(point.device for point in POINTS):
        constants = fit([point for point in POINTS if point.device != device], kernels, trust)
        for point in POINTS:
            if point.device == device:
                found[point] = math.log(predict(point, kernels, constants) / point.latency_ms)
    return found


def by_board(unseen: dict[Point, float]) -> dict[str, list[float]]:
    """The logarithms, board by board."""
    found: dict[str, list[float]] = {}
    for point, error in unseen.items():
        found.setdefault(point.device, []).append(error)
    return found


def factor(boards: dict[str, list[float]]) -> float:
    """Within which ``COVERED`` of the points are, each board of the same weight."""
    pairs = sorted((abs(error), 1 / len(errors) / len(boards)) for errors in boards.values() for error in errors)
    covered = np.cumsum([weight for _, weight in pairs])
    return math.exp(pairs[int(np.searchsorted(covered, COVERED - 1e-9))][0])


def covered_unseen(boards: dict[str, list[float]]) -> dict[str, list[bool]]:
    """Whether each point is within the factor that the errors of the other boards alone would have set."""
    return {
        name: [abs(error) <= math.log(factor({k: v for k, v in boards.items() if k != name})) for error in errors]
        for name, errors in boards.items()
    }


def median_error(errors: Sequence[float]) -> float:
    """Of predicted against published."""
    return float(np.median([abs(math.exp(error) - 1) for error in errors]))


def main() -> None:
    """Parse the command line, fit and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="count the reference networks' kernels anew")
    if parser.parse_args().count:
        KERNELS.write_text(json.dumps(count_kernels(), separators=(",", ":")).replace("]],", "]],\n") + "\n")
    kernels = load_kernels()
    constants, unseen = fit(POINTS, kernels), errors_of_unseen_devices(kernels)
    rows = [
        [f"{p.device} {p.mode}", p.precision, p.network, f"{p.latency_ms:.2f}", f"{predict(p, kernels, constants):.2f}",
         f"{predict(p, kernels, constants) / p.latency_ms - 1:+.0%}", f"{math.exp(error) - 1:+.0%}"]
        for p, error in unseen.items()
    ]  # fmt: skip
    print_table("", ["device", "precision", "network", "published, ms", "fitted, ms", "error", "device left out"], rows)
    boards = by_board(unseen)
    within, covered = factor(boards), covered_unseen(boards)
    rows = [
        [name, str(len(errors)), f"{median_error(errors):.0%}", str(sum(abs(e) <= math.log(within) for e in errors)),
         str(sum(covered[name]))]
        for name, errors in boards.items()
    ]  # fmt: skip
    header = ["board", "points", "median error", f"within {within:.2f}", "within the others' factor"]
    print_table("left out of the fit", header, rows)
    print(f"median error {median_error(list(unseen.values())):.0%} over {len(unseen)} points")
    print(f"{COVERED:.0%} are within a factor of {within:.2f}, each board of the same weight")
    held = [each for found in covered.values() for each in found]
    print(f"{np.mean(held):.0%} of the points are within the factor that the other boards' errors set")
    free = errors_of_unseen_devices(kernels, trust=0.0)
    print(
        "The fit's prior was chosen by these errors. Without any prior: median error "
        f"{median_error(list(free.values())):.0%}, {COVERED:.0%} within a factor of {factor(by_board(free)):.2f}"
    )
    print(constants)


if __name__ == "__main__":
    main()
