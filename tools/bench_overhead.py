"""What edgesdk adds to raw ONNX Runtime and a bare HTTP echo, in one interleaved run.

    python tools/bench_overhead.py BUNDLE [--rounds 400] [--threads 1]

Each round times, one after the other: the encoder in a raw session; EdgeRuntime.encode; the tail in a raw session; an
HTTP echo of the same request bytes by a bare uvicorn application, sent with the same HTTP library over a kept-alive
connection; and a whole EdgeRuntime.predict against `edgesdk serve`. Ratios are taken round by round, so that a change
of the machine's speed meets both sides; their median and quartiles are printed. All sessions use the same number of
threads, and none spins when idle.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import requests
from serving import process, serve

from edge_sdk import EdgeRuntime, Execution, oip
from edge_sdk.bundle import open_party
from edge_sdk.cli.tables import print_table
from edge_sdk.profile.machine import Machine

ECHO = Path(__file__).with_name("peers") / "echo.py"


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    threads = str(arguments.threads)
    with (
        process(serve(arguments.bundle / "server0", "--threads", threads)) as tail_url,
        process([sys.executable, str(ECHO)]) as echo_url,
    ):
        times = measure(arguments.bundle, tail_url, echo_url, arguments.rounds, arguments.warmup, arguments.threads)
    report(times, arguments.threads)


def measure(
    bundle: Path, tail_url: str, echo_url: str, rounds: int, warmup: int, threads: int
) -> dict[str, np.ndarray]:
    """Milliseconds by step, an array of ``rounds``."""
    edge, server = open_party(bundle / "edge"), open_party(bundle / "server0")
    encoder = _session(edge.onnx(edge.manifest.parts[0]), threads)
    tail = _session(server.onnx(server.manifest.parts[0]), threads)
    height, width = (spec := edge.manifest.parts[0].inputs[0]).shape[1:3]
    image = np.random.default_rng(0).integers(0, 256, (1, height or 0, width or 0, 3), np.uint8)
    features = dict(zip((o.name for o in encoder.get_outputs()), encoder.run(None, {spec.name: image}), strict=True))
    headers, chunks = oip.encode_request(features)
    body = b"".join(chunks)
    echo = requests.Session()
    echo.trust_env = False
    with EdgeRuntime(bundle / "edge", [tail_url], execution=Execution(num_threads=threads)) as runtime:
        steps: dict[str, Callable[[], object]] = {
            "raw encode": lambda: encoder.run(None, {spec.name: image}),
            "EdgeRuntime.encode": lambda: runtime.encode(image),
            "raw tail": lambda: tail.run(None, features),
            "echo": lambda: echo.post(echo_url, data=body, headers=headers).content,
            "EdgeRuntime.predict": lambda: runtime.predict(image),
        }
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(warmup + rounds):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: np.array(values[warmup:]) for name, values in times.items()}


def _session(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def report(times: dict[str, np.ndarray], threads: int) -> None:
    """Print medians, and both ratios with their quartiles."""
    rows = []
    for name, values in times.items():
        low, middle, high = np.percentile(values, (25, 50, 75))
        rows.append([name, f"{middle:.3f}", f"{low:.3f}", f"{high:.3f}"])
    count = len(next(iter(times.values())))
    title = f"{count} interleaved rounds, batch 1, {threads} thread(s) a session\n{Machine.here()}"
    print_table(title, ["step, ms", "median", "25 %", "75 %"], rows)
    whole = times["raw encode"] + times["raw tail"] + times["echo"]
    ratios = {
        "EdgeRuntime.encode / raw encode": times["EdgeRuntime.encode"] / times["raw encode"],
        "EdgeRuntime.predict / (raw encode + raw tail + echo)": times["EdgeRuntime.predict"] / whole,
    }
    print_table(
        "ratios, round by round",
        ["ratio", "median", "25 %", "75 %"],
        [[name, *(f"{q:.3f}" for q in np.percentile(r, (50, 25, 75)))] for name, r in ratios.items()],
    )


if __name__ == "__main__":
    main()
