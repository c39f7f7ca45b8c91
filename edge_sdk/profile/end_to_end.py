"""End to end, device to cloud and back, over real images: accuracy, and where the time of a request goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from ..backends import DEFAULT_EXECUTION, BackendName, Execution
from ..bundle import Manifest, Precision
from ..credentials import Credentials
from ..errors import DataError
from ..images import LabelledImage, decode_image, find_images, fit_image
from ..runtime import EdgeRuntime, OnMissing, Prediction
from .conditions import Conditions
from .machine import Accelerator, Machine
from .stats import LatencyStats

__all__ = ["STEPS", "MeasureReport", "ServerReport", "measure"]

STEPS = ("decode", "preprocess", "encode", "serialize", "network", "tail", "fuse")
"""Of a request, in order: image file to RGB; crop and resize; the encoder; tensors to bytes and back; the network, HTTP
and the server's queue; the tail on the server, as it reports it; fusion on the device."""


class ServerReport(msgspec.Struct, frozen=True):
    """One server over all images; ``round_trip`` and ``tail`` are of its answers, None where there is none to time."""

    url: str
    feature_bytes_per_image: int
    num_answers: int
    num_missing: int
    round_trip: LatencyStats | None
    tail: LatencyStats | None


class MeasureReport(msgspec.Struct, frozen=True):
    """What one device and its servers did over a set of images, one request at a time.

    ``total`` is measured around the whole request. ``steps`` has the STEPS; ``tail`` is None, and counted in
    ``network``, where the server does not report it. ``accuracy`` is of the ``num_labelled`` images whose folder is one
    of the bundle's labels, None where there is none; degraded answers count too. ``feature_bytes_per_image`` is what
    the tensors hold, without the few hundred bytes of headers. ``servers`` is by party. ``begin`` and ``end`` are the
    device's conditions before the first counted request and after the last; ``accelerator`` is None on its CPU.
    """

    bundle_id: str
    defense: str
    machine: Machine
    backend: BackendName
    precision: Precision
    num_threads: int | None
    accelerator: Accelerator | None
    begin: Conditions
    end: Conditions
    servers: dict[str, ServerReport]
    data: str
    num_images: int
    num_degraded: int
    num_labelled: int
    accuracy: float | None
    feature_bytes_per_image: int | None
    images_per_second: float
    total: LatencyStats
    steps: dict[str, LatencyStats | None]


def measure(
    edge: Path,
    servers: Sequence[str],
    data: Path,
    *,
    num_images: int | None = None,
    execution: Execution = DEFAULT_EXECUTION,
    timeout_s: float = 10.0,
    on_missing: OnMissing = "fail",
    allow_colocated: bool = False,
    credentials: Sequence[Credentials] = (),
    warmup: int = 5,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MeasureReport:
    """Send images one at a time and time every step.

    Args:
        edge: ``BUNDLE/edge``.
        servers: addresses, one per server of the bundle.
        data: an image, or a folder; sub-folders named as the bundle's labels give the accuracy.
        num_images: of them, evenly spaced over the sorted files; None takes all.
        execution: how the device's parts are run.
        timeout_s: for one call of a server.
        on_missing: as for EdgeRuntime.
        allow_colocated: as for EdgeRuntime.
        credentials: as for EdgeRuntime.
        warmup: requests of a random image beforehand, not counted.
        progress: called with the images done and in all.

    Raises:
        DataError: no image there, or one that cannot be read.
        EdgeSDKError: as EdgeRuntime.
    """
    found = find_images([data])
    if num_images is not None:
        if num_images > len(found):
            raise DataError(f"{data}: {num_images} images were asked for, {len(found)} are there")
        found = [found[i] for i in np.linspace(0, len(found) - 1, num_images).round().astype(int)]
    runtime = EdgeRuntime(
        edge,
        servers,
        execution=execution,
        timeout_s=timeout_s,
        on_missing=on_missing,
        allow_colocated=allow_colocated,
        credentials=credentials,
    )
    with runtime:
        manifest = runtime.manifest
        height, width = runtime.image_size
        nobody = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
        decode_image(found[0].path)
        for _ in range(warmup):
            runtime.predict(nobody)  # an image that is sent again and again loses its noise
        rows: list[Row] = []
        totals: list[float] = []
        predictions: list[Prediction] = []
        begin = Conditions.now()
        began = time.perf_counter()
        for i, image in enumerate(found):
            start = time.perf_counter()
            row, prediction = _request(runtime, image)
            totals.append((time.perf_counter() - start) * 1e3)
            rows.append(row)
            predictions.append(prediction)
            progress(i + 1, len(found))
        seconds = time.perf_counter() - began
        end, accelerator = Conditions.now(), Accelerator.of(execution)
    labels = {name: i for i, name in enumerate(manifest.labels)}
    predicted = [int(prediction.logits[0].argmax()) for prediction in predictions]
    known = [(labels[image.label], p) for image, p in zip(found, predicted, strict=True) if image.label in labels]
    return MeasureReport(
        bundle_id=manifest.bundle_id,
        defense=manifest.defense,
        machine=Machine.here(),
        backend=execution.backend,
        precision=execution.precision,
        num_threads=execution.num_threads,
        accelerator=accelerator,
        begin=begin,
        end=end,
        servers=_servers(manifest, servers, predictions, warmup),
        data=str(data),
        num_images=len(found),
        num_degraded=sum(bool(prediction.missing) for prediction in predictions),
        num_labelled=len(known),
        accuracy=sum(label == p for label, p in known) / len(known) if known else None,
        feature_bytes_per_image=manifest.wire_bytes,
        images_per_second=len(found) / seconds,
        total=LatencyStats.of(totals, warmup),
        steps={step: _step([row[k] for row in rows], warmup) for k, step in enumerate(STEPS)},
    )


Row = tuple[float, float, float, float, float, float | None, float]


def _request(runtime: EdgeRuntime, image: LabelledImage) -> tuple[Row, Prediction]:
    start = time.perf_counter()
    decoded = decode_image(image.path)
    after_decode = time.perf_counter()
    pixels = fit_image(decoded, *runtime.image_size)[None]
    after_fit = time.perf_counter()
    prediction = runtime.predict(pixels)
    t = prediction.timing
    decode_ms, fit_ms = (after_decode - start) * 1e3, (after_fit - after_decode) * 1e3
    row = (decode_ms, fit_ms, t.encode_ms, t.serialize_ms, t.network_ms, t.tail_ms, t.fuse_ms)
    return row, prediction


def _servers(
    manifest: Manifest, urls: Sequence[str], predictions: Sequence[Prediction], warmup: int
) -> dict[str, ServerReport]:
    reports = {}
    for party, url in zip(manifest.servers, urls, strict=True):
        answers = [prediction.servers[party] for prediction in predictions if party in prediction.servers]
        reports[party] = ServerReport(
            url=url,
            feature_bytes_per_image=manifest.bytes_to(party),
            num_answers=len(answers),
            num_missing=len(predictions) - len(answers),
            round_trip=LatencyStats.of([a.round_trip_ms for a in answers], warmup) if answers else None,
            tail=_step([a.compute_ms for a in answers], warmup) if answers else None,
        )
    return reports


def _step(times: list[float | None], warmup: int) -> LatencyStats | None:
    known = [value for value in times if value is not None]
    return LatencyStats.of(known, warmup) if len(known) == len(times) else None
