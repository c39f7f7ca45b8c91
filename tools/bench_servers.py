"""What several servers cost against the one of an undefended split, end to end, in one interleaved run.

    python tools/bench_servers.py ONE_SERVER_BUNDLE SEVERAL_SERVERS_BUNDLE [--rounds 400] [--threads 1]

All servers run on this machine, a process each, on as many cores as it has; each round sends one image through one
bundle and then through the other. Ratios are taken round by round, so that a change of the machine's speed meets both
sides; medians and quartiles are printed. The servers of the second bundle are also asked one after the other, by
themselves: what their answers would take in a row, and what the slowest takes.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from serving import process, serve

from edge_sdk import EdgeRuntime, Execution
from edge_sdk.bundle import EDGE, open_party, parties
from edge_sdk.cli.tables import print_table
from edge_sdk.client import Client
from edge_sdk.collusion import ColocationWarning
from edge_sdk.errors import EdgeSDKError
from edge_sdk.profile.machine import Machine
from edge_sdk.tensors import Array


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one", type=Path)
    parser.add_argument("several", type=Path)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1, help="of an operator, in every session")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ColocationWarning)
    try:
        times = measure(arguments.one, arguments.several, arguments.rounds, arguments.warmup, arguments.threads)
    except EdgeSDKError as error:
        sys.exit(f"bench_servers: {error}")
    report(times, arguments.threads)


def measure(one: Path, several: Path, rounds: int, warmup: int, threads: int) -> dict[str, Array]:
    """Milliseconds by name, an array of ``rounds``."""
    times: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        runtimes, urls = {}, {}
        for name, bundle in (("one", one), ("several", several)):
            folders = [folder for folder in parties(bundle) if folder.name != EDGE]
            urls[name] = [stack.enter_context(process(serve(each, "--threads", str(threads)))) for each in folders]
            runtime = EdgeRuntime(
                bundle / EDGE, urls[name], execution=Execution(num_threads=threads), allow_colocated=True
            )
            runtimes[name] = stack.enter_context(runtime)
        height, width = runtimes["one"].image_size
        image = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
        shares = runtimes["several"].encode(image)
        alone = []
        for folder, url in zip(parties(several)[1:], urls["several"], strict=True):
            part = open_party(folder).manifest.parts[0]
            client = stack.enter_context(Client(url))
            alone.append((folder.name, client, part.name, {spec.name: shares[spec.name] for spec in part.inputs}))
        for _ in range(warmup + rounds):
            for name, runtime in runtimes.items():
                start = time.perf_counter()
                timing = runtime.predict(image).timing
                times[name].append((time.perf_counter() - start) * 1e3)
                for step in ("encode", "serialize", "network", "tail", "fuse"):
                    times[f"{name}: {step}"].append(getattr(timing, f"{step}_ms") or 0.0)
            for name, client, model, feeds in alone:
                start = time.perf_counter()
                client.infer(model, feeds)
                times[f"{name} by itself"].append((time.perf_counter() - start) * 1e3)
    return {name: np.array(values[warmup:]) for name, values in times.items()}


def report(times: dict[str, Array], threads: int) -> None:
    """Print medians with quartiles, and the ratios."""
    rows = [[name, *(f"{q:.3f}" for q in np.percentile(values, (50, 25, 75)))] for name, values in times.items()]
    count = len(times["one"])
    title = (
        f"{count} interleaved rounds, one image, {threads} thread(s) a session, all on one machine\n{Machine.here()}"
    )
    print_table(title, ["step, ms", "median", "25 %", "75 %"], rows)
    alone = np.stack([values for name, values in times.items() if name.endswith("by itself")])
    remote = times["several: serialize"] + times["several: network"] + times["several: tail"]
    ratios = {
        "several servers / one server, end to end": times["several"] / times["one"],
        f"{len(alone)} servers at once / the slowest by itself": remote / alone.max(0),
        f"{len(alone)} servers at once / one after the other": remote / alone.sum(0),
    }
    print_table(
        "ratios, round by round",
        ["ratio", "median", "25 %", "75 %"],
        [[name, *(f"{q:.3f}" for q in np.percentile(ratio, (50, 25, 75)))] for name, ratio in ratios.items()],
    )


if __name__ == "__main__":
    main()
