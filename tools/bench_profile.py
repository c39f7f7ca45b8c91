"""Does `edgesdk profile` report what a bare loop around ONNX Runtime measures?

In one process, in turns: `profile_edge` as the command calls it, whose reported median of the encoder counts, and a
loop of nothing but `session.run` between two readings of the clock. Each round opens its own sessions on both sides and
changes which comes first; the loop too runs the device's other parts and the undefended encoder in turns with the
encoder, since these share its caches. Prints the medians of rounds and their ratio with quartiles; ends with exit
status 1 where the median ratio is more than 2 % from 1. Run it on a machine that does nothing else, on a bundle without
noise, whose drawing belongs to the device's latency and to no bare loop.

    python tools/bench_profile.py BUNDLE [--rounds 20] [--runs 500] [--threads 1]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession, SessionOptions

from edge_sdk.backends import Execution
from edge_sdk.bundle import EDGE, Part, PartyBundle, open_party
from edge_sdk.cli.tables import print_table
from edge_sdk.errors import ConfigError, EdgeSDKError
from edge_sdk.profile.encoder import profile_edge
from edge_sdk.profile.feeds import random_feeds
from edge_sdk.profile.machine import Machine
from edge_sdk.tensors import Array

WARM_UP = 50
"""Runs of each side in every round, not counted."""

LIMIT = 0.02
"""That the median ratio may be from 1."""

Round = tuple[float, float]
"""Median milliseconds of the encoder: as profile reports it, and of the bare loop."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    try:
        rounds = measure(arguments.bundle / EDGE, arguments.rounds, arguments.runs, arguments.threads)
    except EdgeSDKError as error:
        sys.exit(f"bench_profile: {error}")
    title = f"{arguments.rounds} rounds of {arguments.runs} runs, {arguments.threads} thread(s)\n{Machine.here()}"
    ratio = report(title, rounds)
    if abs(ratio - 1) > LIMIT:
        sys.exit(f"bench_profile: profile's median is {ratio:.3f} of the bare loop's, more than {LIMIT:.0%} from it")


def measure(edge: Path, rounds: int, runs: int, threads: int) -> list[Round]:
    """In turns, and a round of warm-up before.

    Raises:
        ConfigError: the device draws noise for this bundle.
        EdgeSDKError: as ``profile_edge``.
    """
    bundle = open_party(edge, EDGE)
    if any(spec.source == "normal" for part in bundle.manifest.parts for spec in part.inputs):
        raise ConfigError(f"{edge}: its noise is drawn within the time that profile reports; take a bundle without")
    execution = Execution(num_threads=threads)
    medians: list[Round] = []
    for i in range(rounds + 1):
        if bare_first := i % 2 == 1:
            bare = bare_median_ms(bundle, runs, threads)
        reported = profile_edge(edge, runs=runs, warmup=WARM_UP, execution=execution).encoder.latency.p50_ms
        if not bare_first:
            bare = bare_median_ms(bundle, runs, threads)
        medians.append((reported, bare))
    return medians[1:]


def bare_median_ms(bundle: PartyBundle, runs: int, threads: int) -> float:
    """Of the encoder, all that profile runs beside it in turns with it."""
    manifest = bundle.manifest
    own = [part for part in manifest.parts if part.placement == EDGE]
    loaded = [_open(part, bundle, threads) for part in [*own, *([manifest.reference] if manifest.reference else [])]]
    times = np.array([[_run_ms(*each) for each in loaded] for _ in range(WARM_UP + runs)])
    return float(np.median(times[WARM_UP:, 0]))


def _open(part: Part, bundle: PartyBundle, threads: int) -> tuple[InferenceSession, dict[str, Array]]:
    """As anybody opens one; like profile's, its idle threads do not spin, or each would take the other's cores."""
    options = SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = InferenceSession(bundle.onnx(part), options, providers=["CPUExecutionProvider"])
    return session, random_feeds(part.inputs, 1)


def _run_ms(session: InferenceSession, feeds: dict[str, Array]) -> float:
    begin = time.perf_counter()
    session.run(None, feeds)
    return (time.perf_counter() - begin) * 1e3


def report(title: str, rounds: Sequence[Round]) -> float:
    """Print medians and quartiles; gives the median ratio of the rounds."""
    reported, bare = np.array(rounds).T
    named = (("profile, ms", reported), ("bare loop, ms", bare), ("profile / bare loop", reported / bare))
    rows = [[name, *(f"{q:.3f}" for q in np.percentile(values, (50, 25, 75)))] for name, values in named]
    print_table(title, ["median of a round", "median", "25 %", "75 %"], rows)
    return float(np.median(reported / bare))


if __name__ == "__main__":
    main()
