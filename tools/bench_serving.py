"""Our server beside others of the same protocol, on the same ONNX tail, in interleaved rounds.

    python tools/bench_serving.py MODEL [--rounds 3] [--seconds 4] [--peer triton --peer mlserver=PYTHON …]

MODEL is a bundle, or a name of tools/bench_models.py: `tiny`, one linear layer, so that the server itself is seen, or
`convolutional`, for which batches gain little, so that raw is the same at every concurrency.

Needs wrk. Every server runs with ONNX Runtime on as many threads as it has cores, at most 32 rows a batch, no window.
A round asks each of them at concurrency 1, 8 and 32, one row a request, binary tensors (MLServer takes JSON alone);
LitServe and Ray Serve, which burn cores when idle, are stopped while others are asked. `raw` is session.run in this
process at the best of its batch sizes, `echo` a bare uvicorn that sends the body back. Peers are the scripts of
`tools/peers/`, each by the Python that has its packages.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import requests
from bench_models import BUILT_IN
from serving import EDGESDK

from edge_sdk import oip
from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.bundle import open_party
from edge_sdk.cli.tables import print_table
from edge_sdk.errors import EdgeSDKError
from edge_sdk.profile.feeds import random_feeds
from edge_sdk.profile.machine import Machine, usable_cpus
from edge_sdk.progress import track
from edge_sdk.tensors import Array

PEERS = Path(__file__).with_name("peers")
CONCURRENCIES = (1, 8, 32)
MAX_BATCH = 32
START_SECONDS = 60.0
RAW_BATCHES = (1, 8, MAX_BATCH)
BURN_IDLE = ("litserve", "ray")
JSON_ONLY = ("mlserver",)
PACKAGES = {"triton": "nvidia-pytriton"}
"""Of peers whose package has another name."""


class Measured(NamedTuple):
    """Requests a second, and milliseconds, at one concurrency."""

    rate: float
    p50: float
    p99: float


class Server(NamedTuple):
    """A process group that serves."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    ready_seconds: float
    log: Path

    @property
    def speaks(self) -> str:
        """How it takes tensors."""
        return "json" if self.name in JSON_ONLY else "binary"

    def pause(self) -> None:
        """Stop its processes where they would burn cores; Triton's locks between processes do not survive that."""
        if self.name in BURN_IDLE:
            os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """After ``pause``."""
        os.killpg(self.process.pid, signal.SIGCONT)
        time.sleep(0.3)

    def memory_mib(self) -> float:
        """Of all its processes, shared pages by their parts."""
        total = 0
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, IndexError):  # it has ended meanwhile
                if os.getpgid(int(folder.name)) == self.process.pid:
                    total += int(re.findall(r"^Pss:\s+(\d+)", (folder / "smaps_rollup").read_text(), re.M)[0])
        return total / 1024


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=f"a bundle, or {' or '.join(BUILT_IN)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--peer", action="append", default=[], help="NAME, or NAME=PYTHON")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("bench_serving: needs wrk, as Debian and Ubuntu package it")
    with tempfile.TemporaryDirectory() as work:
        try:
            build = BUILT_IN.get(arguments.model)
            folder = build(Path(work)) if build else Path(arguments.model) / "server0"
            run(folder, Path(work), arguments.rounds, arguments.seconds, arguments.peer)
        except EdgeSDKError as error:
            sys.exit(f"bench_serving: {error}")


def run(folder: Path, work: Path, rounds: int, seconds: int, peers: list[str]) -> None:
    """Measure all, and print."""
    bundle = open_party(folder, "server")
    part = bundle.manifest.parts[0]
    onnx = work / "model.onnx"
    onnx.write_bytes(bundle.onnx(part))
    threads = usable_cpus()
    path = f"/v2/models/{part.name}/infer"
    feeds = random_feeds(part.inputs, 1)
    headers, chunks = oip.encode_request(feeds, request_id="1")
    binary = (headers, b"".join(chunks))
    calls = {kind: _wrk_script(work, kind, path, *call) for kind, call in (("binary", binary), ("json", _json(feeds)))}
    options = ["--threads", str(threads), "--max-batch", str(MAX_BATCH), "--max-waiting", "1024"]
    commands = {"edgesdk": [*EDGESDK, "serve", str(folder), *options], "echo": [sys.executable, str(PEERS / "echo.py")]}
    for peer in peers:
        name, _, python = peer.partition("=")
        script = PEERS / f"on_{name}.py"  # by its own name, it would be imported in the package's place
        if not script.is_file():
            known = ", ".join(sorted(path.stem.removeprefix("on_") for path in PEERS.glob("on_*.py")))
            sys.exit(f"bench_serving: no peer {name!r}; there are {known}")
        commands[name] = [python or sys.executable, str(script)]
    versions = {name: _version(name, command[0]) for name, command in commands.items()}
    found: dict[str, dict[int, list[Measured]]] = {name: {c: [] for c in CONCURRENCIES} for name in commands}
    raw: list[list[float]] = []
    with ExitStack() as stack:
        servers = []
        for name, command in commands.items():
            servers.append(stack.enter_context(_started(name, command, part.name, onnx, threads, work)))
            headers, body = _json(feeds) if name in JSON_ONLY else binary
            answer = requests.post(servers[-1].url + path, data=body, headers=headers, timeout=30)
            if answer.status_code != 200:
                log = servers[-1].log.read_text()[-2000:]
                sys.exit(f"bench_serving: {name} answered {answer.status_code}: {answer.text[:500]}\n{log}")
            servers[-1].pause()
        idle = {}
        for server in servers:
            idle[server.name] = server.memory_mib()
        session = stack.enter_context(OnnxRuntimeBackend(onnx.read_bytes(), threads))
        for _ in track(range(rounds + 1), rounds + 1, "rounds"):  # the first warms up
            raw.append(_raw_rates(session, seconds))
            for server in servers:
                server.go_on()
                for concurrency in CONCURRENCIES:
                    found[server.name][concurrency].append(_wrk(calls[server.speaks], server, concurrency, seconds))
                server.pause()
        busy = {server.name: server.memory_mib() for server in servers}
    ready = {server.name: server.ready_seconds for server in servers}
    _report(f"{folder.parent.name}", found, raw[1:], ready, idle, busy, versions)


def _version(name: str, python: str) -> str:
    """Of a peer's package and its ONNX Runtime, as its own Python has them; nothing of ours and of echo."""
    if name in ("edgesdk", "echo"):
        return ""
    code = "import sys, importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
    asked = [python, "-c", code, PACKAGES.get(name, name), "onnxruntime"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def _started(name: str, command: list[str], model: str, onnx: Path, threads: int, work: Path) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "BENCH_MODEL": str(onnx),
        "BENCH_NAME": model,
        "BENCH_PORT": str(port),
        "BENCH_THREADS": str(threads),
        "BENCH_BATCH": str(MAX_BATCH),
        "BENCH_WORK": str(work),
    }
    if name == "edgesdk":
        command = [*command, "--port", str(port)]
    log = work / f"{name}.log"
    began = time.perf_counter()
    with (
        log.open("w") as out,
        subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            while not _is_ready(f"{url}/v2/models/{model}/ready"):
                if process.poll() is not None or time.perf_counter() - began > START_SECONDS:
                    sys.exit(f"bench_serving: {name} does not start: {log.read_text()[-2000:]}")
                time.sleep(0.01)
            yield Server(name, url, process, time.perf_counter() - began, log)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _is_ready(url: str) -> bool:
    try:
        return requests.get(url, timeout=1).status_code == 200
    except requests.RequestException:
        return False


def _json(feeds: Mapping[str, Array]) -> tuple[dict[str, str], bytes]:
    """The same request with its tensors as JSON."""
    tensors = [
        {"name": name, "shape": array.shape, "datatype": "FP32", "data": array.ravel().tolist()}
        for name, array in feeds.items()
    ]
    return {"Content-Type": "application/json"}, json.dumps({"id": "1", "inputs": tensors}).encode()


def _wrk_script(work: Path, kind: str, path: str, headers: dict[str, str], body: bytes) -> Path:
    content = work / f"body.{kind}"
    content.write_bytes(body)
    lines = [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
    script = work / f"wrk.{kind}.lua"
    script.write_text(
        f'local file = io.open("{content}", "rb")\nwrk.body = file:read("*a")\nfile:close()\n'
        f'wrk.method = "POST"\nwrk.path = "{path}"\n' + "\n".join(lines) + "\n"
    )
    return script


def _wrk(script: Path, server: Server, concurrency: int, seconds: int) -> Measured:
    command = ["wrk", "-t1", f"-c{concurrency}", f"-d{seconds}s", "--latency", "-s", str(script), server.url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        sys.exit(f"bench_serving: {server.name} at {concurrency}: {text}\n{server.log.read_text()[-2000:]}")
    units = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    quantiles = {q: float(v) * units[u] for q, v, u in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)", text)}
    return Measured(float(re.findall(r"Requests/sec:\s+([\d.]+)", text)[0]), quantiles["50"], quantiles["99"])


def _raw_rates(session: OnnxRuntimeBackend, seconds: int) -> list[float]:
    """Rows a second of session.run alone, at each of RAW_BATCHES."""
    rates = []
    for batch in RAW_BATCHES:
        feeds, count, began = random_feeds(session.inputs, batch), 0, time.perf_counter()
        while (took := time.perf_counter() - began) < seconds / 3:
            session.run(feeds)
            count += batch
        rates.append(count / took)
    return rates


def _report(
    title: str,
    found: dict[str, dict[int, list[Measured]]],
    raw: list[list[float]],
    ready: dict[str, float],
    idle: dict[str, float],
    busy: dict[str, float],
    versions: dict[str, str],
) -> None:
    rows, best = [], np.max(raw, 1)
    by_batch = ", ".join(
        f"{rate:,.0f} at batch {size}" for size, rate in zip(RAW_BATCHES, np.median(raw, 0), strict=True)
    )
    for name, by_concurrency in found.items():
        row = [name]
        for concurrency in CONCURRENCIES:
            rates = np.array([each.rate for each in by_concurrency[concurrency][1:]])
            shares = rates / best
            row.append(f"{np.median(rates):,.0f} ({np.median(shares):.2f}; {shares.min():.2f}-{shares.max():.2f})")
        row.append(f"{np.median([each.p50 for each in by_concurrency[1][1:]]):.3f}")
        tails = [np.median([each.p99 for each in by_concurrency[concurrency][1:]]) for concurrency in CONCURRENCIES]
        row.append(", ".join(f"{tail:.1f}" for tail in tails))
        row += [f"{ready[name]:.2f}", f"{idle[name]:.0f}, {busy[name]:.0f}"]
        rows.append(row)
    columns = [f"req/s at {c} (of raw)" for c in CONCURRENCIES]
    print_table(
        f"{title}; {len(raw)} rounds; raw {np.median(best):,.0f} rows/s ({best.min():,.0f}-{best.max():,.0f}), "
        f"{by_batch}\n{Machine.here()}",
        [
            "server",
            *columns,
            "p50 ms at 1",
            f"p99 at {', '.join(map(str, CONCURRENCIES))}",
            "ready s",
            "MiB idle, after",
        ],
        rows,
    )
    for name, version in versions.items():
        if version:
            print(f"{name}: {version}")


if __name__ == "__main__":
    main()
