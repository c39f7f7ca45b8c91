"""Profile of a bundle's edge side, beside the undefended encoder of the same backbone."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import msgspec

from ..backends import DEFAULT_EXECUTION, Backend, BackendName, Execution, open_backend
from ..bundle import EDGE, Cost, Part, PartyBundle, Precision, open_party
from ..engine.process import available_memory
from ..errors import BackendError, DeviceError
from ..noise import draw_noise
from ..tensors import Array, TensorSpec
from .conditions import Conditions, ConditionsSampler, Extremes
from .devices import ELEMENT_BYTES
from .energy import PartEnergy, measured_energies
from .feeds import check_batch, random_feeds
from .layers import layer_times
from .machine import Accelerator, Machine
from .memory import peak_memory_bytes
from .stats import LatencyStats

__all__ = ["PartProfile", "ProfileReport", "Ratio", "named_parts", "profile_edge", "run_ms"]

LEAST_WARM_UP_S = 0.5
CHECK_ROUNDS = 50
"""Rounds between looks at whether the medians are steady."""

GPU_RUNS = 200
"""Runs that are timed step by step on the GPU, after those whose latency is reported."""


class PartProfile(msgspec.Struct, frozen=True):
    """One network that the device runs.

    Attributes:
        name: of the part.
        cost: for one image, counted from the float32 graph.
        weight_bytes: of all constants of the graph that ran.
        wire_bytes: that its outputs have for one image.
        load_ms: from the file's content to a model that can run; on a GPU an engine may be built in it.
        first_run_ms: of a batch, apart from the others: libraries set themselves up in it.
        latency: of one run of a batch, from arrays in memory to arrays in memory, copies to a GPU and back and the
            drawing of a defense's noise included.
        samples_ms: the same, run by run.
        throughput: images a second, one run after the other.
        layer_ms: by layer: on a CPU in float32 of a run that fuses none, by the ONNX node's name; in a lower precision,
            in which nothing runs without fusing, of ONNX Runtime's fused layers; on a GPU of the engine's own.
        gpu: times of a run's steps, by trtexec's names; empty on a CPU.
        peak_memory_bytes: that loading and running add to a process, None where the system does not tell; on a GPU
            what they take of its free memory, in which whatever else runs on it counts.
        energy: None where the machine has no power monitor.
        kept_in_fp32: nodes that an int8 export left in float32.
        draws_noise: whether the device draws noise for each of its runs, within the latency.
    """

    name: str
    cost: Cost
    weight_bytes: int
    wire_bytes: int
    load_ms: float
    first_run_ms: float
    latency: LatencyStats
    samples_ms: list[float]
    throughput: float
    layer_ms: dict[str, float]
    gpu: dict[str, LatencyStats]
    peak_memory_bytes: int | None
    energy: PartEnergy | None
    kept_in_fp32: list[str] = []
    draws_noise: bool = False


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

    ``after`` are the device's parts that follow the servers' answers. ``wire_bytes_by_server`` is for one image;
    ``accelerator`` is None on a CPU; ``begin`` and ``end`` are the conditions before the first timed run and after all
    else that was measured, ``during`` the worst in the timed runs. ``wire_dtype`` is what features travel in, the
    undefended ones' too.
    """

    bundle_id: str
    defense: str
    machine: Machine
    backend: BackendName
    precision: Precision
    batch: int
    num_threads: int | None
    seed: int
    begin: Conditions
    during: Extremes
    end: Conditions
    encoder: PartProfile
    after: list[PartProfile]
    wire_bytes_by_server: dict[str, int]
    undefended: PartProfile | None
    ratio: Ratio | None
    accelerator: Accelerator | None = None
    wire_dtype: str | None = None


def named_parts(report: ProfileReport) -> list[tuple[str, PartProfile]]:
    """The device's parts in the order they run, and the undefended encoder."""
    named = [("encoder", report.encoder), *((part.name, part) for part in report.after)]
    return [*named, ("undefended", report.undefended)] if report.undefended else named


class _Loaded(NamedTuple):
    part: Part
    backend: Backend
    feeds: Mapping[str, Array]
    noises: Sequence[TensorSpec]
    load_ms: float
    first_run_ms: float
    samples: list[float]

    def run_ms(self) -> float:
        return run_ms(self.backend, self.feeds, self.noises)


def profile_edge(
    path: Path,
    *,
    batch: int = 1,
    runs: int = 200,
    warmup: int = 20,
    until_stable: bool = False,
    execution: Execution = DEFAULT_EXECUTION,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ProfileReport:
    """Measure what the device runs and, in turns with it, the undefended encoder that the bundle has for comparison.

    Args:
        path: ``BUNDLE/edge``.
        batch: images a run; 1 where the bundle was exported for that.
        runs: timed runs of each part.
        warmup: runs before that, not counted; on a GPU half a second's at least.
        until_stable: stop before ``runs`` once every part's median is known to 2 % either way, with 95 % confidence.
        execution: how the parts are run.
        progress: called with the rounds done and in all.

    Raises:
        BundleError: the folder is not a whole, unaltered edge party.
        BackendError: a part cannot be loaded or run.
        TensorError: the bundle has another fixed batch size.
        DeviceError: less memory is free than the batch takes.
    """
    bundle = open_party(path, EDGE)
    manifest = bundle.manifest
    own = [part for part in manifest.parts if part.placement == EDGE]
    parts = [*own, *([manifest.reference] if manifest.reference else [])]
    _check_memory(parts, batch, execution)
    execution = execution._replace(max_batch=batch)
    for part in parts:
        check_batch(part.inputs, batch)  # before an engine is built for it
    with ExitStack() as opened:
        loaded = [_load(part, bundle, execution, batch, opened) for part in parts]
        warmed = _warm_up(loaded, warmup, 0.0 if execution.backend == "onnxruntime" else LEAST_WARM_UP_S)
        begin = Conditions.now()
        with ConditionsSampler() as sampler:
            _time_in_turns(loaded, runs, until_stable, progress)
        # Before the energy: as warm as in the turns.
        told = [_library_times(each, batch, bundle, execution) for each in loaded]
        energies = measured_energies([each.run_ms for each in loaded])
        end = Conditions.now()
    profiles = [
        _profile(each, warmed, batch, bundle, execution, times, energy)
        for each, times, energy in zip(loaded, told, energies, strict=True)
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
        begin=begin,
        during=sampler.extremes(),
        end=end,
        encoder=profiles[0],
        after=profiles[1 : len(own)],
        wire_bytes_by_server={server: manifest.bytes_to(server) for server in manifest.servers},
        undefended=undefended,
        ratio=_ratio(undefended, profiles[: len(own)]) if undefended else None,
        accelerator=Accelerator.of(execution),
        wire_dtype=own[0].outputs[0].dtype,
    )


def _check_memory(parts: Sequence[Part], batch: int, execution: Execution) -> None:
    """By all inputs and, on a CPU, the largest layer that cannot work in place: the kernel would kill for more."""
    free = available_memory()
    needed = sum(spec.bytes_per_sample for part in parts for spec in part.inputs) * batch
    if execution.backend == "onnxruntime":
        layers = [layer for part in parts if part.cost for layer in part.cost.layers if layer.flops]
        needed += ELEMENT_BYTES[execution.precision] * max((layer.elements(batch) for layer in layers), default=0)
    if free is not None and needed > free:
        raise DeviceError(
            f"a batch of {batch} takes {needed >> 20:,} MiB of memory at least, {free >> 20:,} MiB are free; choose a "
            "smaller --batch"
        )


def _load(part: Part, bundle: PartyBundle, execution: Execution, batch: int, opened: ExitStack) -> _Loaded:
    begin = time.perf_counter()
    backend = open_backend(part, bundle, execution)
    there = time.perf_counter()
    opened.callback(backend.close)
    feeds = random_feeds(backend.inputs, batch)
    noises = [spec for spec in part.inputs if spec.source == "normal"]
    return _Loaded(part, backend, feeds, noises, (there - begin) * 1e3, run_ms(backend, feeds, noises), [])


def _warm_up(loaded: Sequence[_Loaded], rounds: int, seconds: float) -> int:
    """At least so many rounds and seconds: a GPU's clock rises with its load, and a round may take a millisecond."""
    end, done = time.perf_counter() + seconds, 0
    while done < rounds or time.perf_counter() < end:
        done += 1
        for each in loaded:
            each.run_ms()
    return done


def _time_in_turns(
    loaded: Sequence[_Loaded], runs: int, until_stable: bool, progress: Callable[[int, int], None]
) -> None:
    """In turns, so that a change of the machine's speed meets all parts."""
    for i in range(1, runs + 1):
        for each in loaded:
            each.samples.append(each.run_ms())
        progress(i, runs)
        look = until_stable and i % CHECK_ROUNDS == 0
        if look and all(LatencyStats.of(each.samples, 0).steady for each in loaded):
            return


def run_ms(backend: Backend, feeds: Mapping[str, Array], noises: Sequence[TensorSpec] = ()) -> float:
    """Milliseconds of one run, from arrays in memory to arrays in memory: what every latency here is made of.

    Args:
        backend: that runs.
        feeds: its inputs.
        noises: of these, those that the device draws for every request, as here within the time.
    """
    begin = time.perf_counter()
    if noises:
        feeds = {**feeds, **draw_noise(noises, len(feeds[noises[0].name]))}
    backend.run(feeds)
    return (time.perf_counter() - begin) * 1e3


_Times = tuple[dict[str, float], dict[str, LatencyStats], int | None]
"""By layer; on the GPU by step; and peak memory."""


def _profile(
    loaded: _Loaded,
    num_warmup: int,
    batch: int,
    bundle: PartyBundle,
    execution: Execution,
    times: _Times,
    energy: PartEnergy | None,
) -> PartProfile:
    part, samples = loaded.part, loaded.samples
    if part.cost is None:
        raise AssertionError(f"part {part.name} has a file and no cost")  # export writes both
    layer_ms, gpu, memory = times
    return PartProfile(
        name=part.name,
        cost=part.cost,
        weight_bytes=part.weight_bytes(execution.precision),
        wire_bytes=sum(spec.bytes_per_sample for spec in part.outputs),
        load_ms=loaded.load_ms,
        first_run_ms=loaded.first_run_ms,
        latency=LatencyStats.of(samples, num_warmup),
        samples_ms=samples,
        throughput=batch * len(samples) / sum(samples) * 1e3,
        layer_ms=layer_ms,
        gpu=gpu,
        peak_memory_bytes=memory,
        energy=energy,
        kept_in_fp32=_kept_in_fp32(bundle, part, execution.precision),
        draws_noise=bool(loaded.noises),
    )


def _kept_in_fp32(bundle: PartyBundle, part: Part, precision: Precision) -> list[str]:
    kept = bundle.manifest.provenance.get("parity", {}).get(precision, {}).get("kept_in_fp32", [])
    return [name.removeprefix(f"{part.name}/") for name in kept if name.startswith(f"{part.name}/")]


def _library_times(loaded: _Loaded, batch: int, bundle: PartyBundle, execution: Execution) -> _Times:
    """What the library that runs a part can tell."""
    if execution.backend == "onnxruntime":
        onnx = bundle.onnx(loaded.part, execution.precision)
        fused = loaded.part.runs_in(execution.precision) != "fp32"
        layer_ms = layer_times(onnx, loaded.feeds, fused=fused, num_threads=execution.num_threads)
        return layer_ms, {}, _peak_memory_bytes(onnx, batch, execution.num_threads)
    if execution.backend != "tensorrt":
        return {}, {}, None
    from ..backends.tensorrt import GpuTimes, TensorRTBackend

    assert isinstance(loaded.backend, TensorRTBackend)
    times = [loaded.backend.timed_run(loaded.feeds) for _ in range(GPU_RUNS)]
    gpu = {name: LatencyStats.of([each[i] for each in times], 0) for i, name in enumerate(GpuTimes._fields)}
    return loaded.backend.layer_times(loaded.feeds), gpu, loaded.backend.gpu_memory_bytes


def _peak_memory_bytes(onnx: bytes, batch: int, num_threads: int | None) -> int | None:
    """None, too, where measuring it fails: that must not cost the report all else."""
    try:
        return peak_memory_bytes(onnx, batch, num_threads)
    except BackendError as error:
        warnings.warn(f"no peak memory: {error}", stacklevel=2)
        return None


def _ratio(undefended: PartProfile, defended: list[PartProfile]) -> Ratio:
    return Ratio(
        flops=undefended.cost.flops / sum(part.cost.flops for part in defended),
        num_params=undefended.cost.num_params / sum(part.cost.num_params for part in defended),
        wire_bytes=undefended.wire_bytes / defended[0].wire_bytes,
        latency_p50=undefended.latency.p50_ms / sum(part.latency.p50_ms for part in defended),
    )
