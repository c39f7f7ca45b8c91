"""Does `edgesdk profile` report what a bare loop around ONNX Runtime measures?

In one process, in turns run by run, so that a change of the machine's speed meets both: what `profile` times a run
with, and nothing but `session.run` between two readings of the clock, each on the encoder and, as `profile` does, on
the undefended one beside it. Prints the medians of rounds and their ratio with quartiles. Run it on a machine that does
nothing else.

    python tools/bench_profile.py BUNDLE [--rounds 20] [--runs 200] [--threads 1]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession, SessionOptions

from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.bundle import EDGE, open_party
from edge_sdk.cli.tables import print_table
from edge_sdk.errors import EdgeSDKError
from edge_sdk.profile.conditions import ConditionsSampler
from edge_sdk.profile.encoder import run_ms
from edge_sdk.profile.feeds import random_feeds
from edge_sdk.profile.machine import Machine
from edge_sdk.tensors import Array


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    try:
        rounds = measure(arguments.bundle / EDGE, arguments.rounds, arguments.runs, arguments.threads)
    except EdgeSDKError as error:
        sys.exit(f"bench_profile: {error}")
    reported, bare = np.array(rounds).T
    rows = [
        [name, *(f"{q:.3f}" for q in np.percentile(values, (50, 25, 75)))]
        for name, values in (
            ("profile, ms", reported),
            ("bare loop, ms", bare),
            ("profile / bare loop", reported / bare),
        )
    ]
    title = f"{arguments.rounds} rounds of {arguments.runs} runs, {arguments.threads} thread(s)\n{Machine.here()}"
    print_table(title, ["median of a round", "median", "25 %", "75 %"], rows)


def measure(edge: Path, rounds: int, runs: int, threads: int) -> list[tuple[float, float]]:
    """Median milliseconds of the encoder in each round: as profile times it, and in the bare loop."""
    bundle = open_party(edge)
    manifest = bundle.manifest
    parts = [manifest.parts[0], *([manifest.reference] if manifest.reference else [])]
    backends = [OnnxRuntimeBackend(bundle.onnx(part), threads) for part in parts]
    feeds = [random_feeds(backend.inputs, 1) for backend in backends]
    sessions = [_session(bundle.onnx(part), threads) for part in parts]
    medians = []
    with ConditionsSampler():  # as profile looks at clocks and temperatures meanwhile
        for _ in range(rounds + 1):
            times = np.empty((runs, 2))
            for i in range(runs):
                timed = [run_ms(backend, feed) for backend, feed in zip(backends, feeds, strict=True)]
                bare = [_bare_ms(session, feed) for session, feed in zip(sessions, feeds, strict=True)]
                times[i] = timed[0], bare[0]
            medians.append(tuple(np.median(times, 0).tolist()))
    return medians[1:]  # the first is warm-up


def _session(onnx: bytes, threads: int) -> InferenceSession:
    """As anybody opens one; like profile's, its idle threads do not spin, or each would take the other's cores."""
    options = SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def _bare_ms(session: InferenceSession, feeds: dict[str, Array]) -> float:
    begin = time.perf_counter()
    session.run(None, feeds)
    return (time.perf_counter() - begin) * 1e3


if __name__ == "__main__":
    main()
