"""Profile of a bundle's edge side, beside the undefended encoder of the same backbone."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..backends import DEFAULT_EXECUTION, BackendName, Execution, Precision, open_backend
from ..bundle import EDGE, Cost, Part, PartyBundle, open_party
from .feeds import random_feeds
from .machine import Machine
from .memory import peak_memory_bytes
from .stats import LatencyStats

__all__ = ["PartProfile", "ProfileReport", "Ratio", "profile_edge"]


class PartProfile(msgspec.Struct, frozen=True):
    """One network that the device runs.

    ``cost`` is for one image, counted from the graph; latency and memory are measured, for a batch. ``latency`` is one
    run of the backend, from arrays in memory to arrays in memory; ``samples_ms`` its raw samples.
    ``peak_memory_bytes`` is what loading and running add to a process; None where the system does not tell.
    """

    name: str
    cost: Cost
    wire_bytes: int
    latency: LatencyStats
    samples_ms: list[float]
    peak_memory_bytes: int | None


class Ratio(msgspec.Struct, frozen=True):
    """Undefended over defended: how many times cheaper the defended device side is (below 1: dearer).

    The defended side is the encoder and, where there is one, what runs after the servers' answers. ``latency_p50`` is
    of the medians, measured in turns in one run.
    """

    flops: float
    num_params: float
    wire_bytes: float
    latency_p50: float


class ProfileReport(msgspec.Struct, frozen=True):
    """Everything measured here; ``undefended`` and ``ratio`` are None for the undefended baseline itself.

    ``after`` are the device's parts that follow the servers' answers. ``wire_bytes_by_server`` is for one image.
    """

    bundle_id: str
    defense: str
    machine: Machine
    backend: BackendName
    precision: Precision
    batch: int
    num_threads: int | None
    seed: int
    encoder: PartProfile
    after: list[PartProfile]
    wire_bytes_by_server: dict[str, int]
    undefended: PartProfile | None
    ratio: Ratio | None


def profile_edge(
    path: Path,
    *,
    batch: int = 1,
    runs: int = 200,
    warmup: int = 20,
    execution: Execution = DEFAULT_EXECUTION,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ProfileReport:
    """Measure what the device runs and, in turns with it, the undefended encoder that the bundle has for comparison.

    Args:
        path: ``BUNDLE/edge``.
        batch: images a run.
        runs: timed runs of each part.
        warmup: runs before that, not counted.
        execution: how the parts are run.
        progress: called with the rounds done and in all.

    Raises:
        BundleError: the folder is not a whole, unaltered edge party.
        BackendError: a part cannot be loaded or run.
        TensorError: the bundle has another fixed batch size.
    """
    bundle = open_party(path, EDGE)
    manifest = bundle.manifest
    own = [part for part in manifest.parts if part.placement == EDGE]
    parts = [*own, *([manifest.reference] if manifest.reference else [])]
    execution = execution._replace(max_batch=batch)
    backends = [open_backend(part, bundle, execution) for part in parts]
    feeds = [random_feeds(backend.inputs, batch) for backend in backends]
    samples: list[list[float]] = [[] for _ in parts]
    for i in range(warmup + runs):
        # In turns, so that a change of the machine's speed meets both.
        for backend, feed, times in zip(backends, feeds, samples, strict=True):
            start = time.perf_counter()
            backend.run(feed)
            times.append((time.perf_counter() - start) * 1e3)
        progress(i + 1, warmup + runs)
    for backend in backends:
        backend.close()
    profiles = [
        _profile(part, times[warmup:], warmup, _peak_memory(bundle, part, batch, execution))
        for part, times in zip(parts, samples, strict=True)
    ]
    undefended = profiles[-1] if manifest.reference else None
    return ProfileReport(
        bundle_id=manifest.bundle_id,
        defense=manifest.defense,
        machine=Machine.here(),
        backend=execution.backend,
        precision=execution.precision,
        batch=batch,
        num_threads=execution.num_threads,
        seed=0,
        encoder=profiles[0],
        after=profiles[1 : len(own)],
        wire_bytes_by_server={server: manifest.bytes_to(server) for server in manifest.servers},
        undefended=undefended,
        ratio=_ratio(undefended, profiles[: len(own)]) if undefended else None,
    )


def _peak_memory(bundle: PartyBundle, part: Part, batch: int, execution: Execution) -> int | None:
    """None on a GPU: what a process has resident says nothing of the GPU's memory."""
    if execution.backend != "onnxruntime":
        return None
    return peak_memory_bytes(bundle.onnx(part, execution.precision), batch, execution.num_threads)


def _profile(part: Part, samples: list[float], warmup: int, memory: int | None) -> PartProfile:
    if part.cost is None:
        raise AssertionError(f"part {part.name} has a file and no cost")  # export writes both
    wire = sum(spec.bytes_per_sample for spec in part.outputs)
    return PartProfile(part.name, part.cost, wire, LatencyStats.of(samples, warmup), samples, memory)


def _ratio(undefended: PartProfile, defended: list[PartProfile]) -> Ratio:
    return Ratio(
        flops=undefended.cost.flops / sum(part.cost.flops for part in defended),
        num_params=undefended.cost.num_params / sum(part.cost.num_params for part in defended),
        wire_bytes=undefended.wire_bytes / defended[0].wire_bytes,
        latency_p50=undefended.latency.p50_ms / sum(part.latency.p50_ms for part in defended),
    )
