"""Does `edgesdk profile` report what a bare loop around ONNX Runtime measures?

In turns, in one process: a profile of the bundle's device side, then a loop of as many runs of the same session options
on the same input, nothing but `session.run` between two readings of the clock. Prints the ratio of the two medians,
round by round, with quartiles. Run it on a machine that does nothing else.

    python tools/bench_profile.py BUNDLE [--rounds 20] [--runs 200] [--threads 1]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from edge_sdk import Execution
from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.bundle import EDGE, open_party
from edge_sdk.cli.tables import print_table
from edge_sdk.errors import EdgeSDKError
from edge_sdk.profile.encoder import profile_edge
from edge_sdk.profile.feeds import random_feeds
from edge_sdk.profile.machine import Machine

WARMUP = 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    edge = arguments.bundle / EDGE
    try:
        rounds = [measure(edge, arguments.runs, arguments.threads) for _ in range(arguments.rounds)]
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


def measure(edge: Path, runs: int, threads: int) -> tuple[float, float]:
    """Median milliseconds of the encoder: as profile reports it, and of the bare loop."""
    report = profile_edge(edge, runs=runs, warmup=WARMUP, execution=Execution(num_threads=threads))
    bundle = open_party(edge)
    with OnnxRuntimeBackend(bundle.onnx(bundle.manifest.parts[0]), threads) as backend:
        session, feeds, times = backend._session, random_feeds(backend.inputs, 1), []
        for _ in range(WARMUP + runs):
            begin = time.perf_counter()
            session.run(None, feeds)
            times.append(time.perf_counter() - begin)
    return report.encoder.latency.p50_ms, float(np.median(times[WARMUP:])) * 1e3


if __name__ == "__main__":
    main()
