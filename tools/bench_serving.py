"""Our server beside others of the same protocol, on the same ONNX tail, in interleaved rounds.

    python tools/bench_serving.py MODEL … [--rounds 3] [--seconds 4] [--peer triton --peer mlserver=PYTHON …]
        [--markdown FILE]

A MODEL is a bundle, or a name of tools/bench_models.py: `tiny`, one linear layer, so that the server itself is seen, or
`convolutional`, for which batches gain little, so that raw is the same at every concurrency.

Needs wrk. Every server runs with ONNX Runtime on as many threads as it has cores, at most 32 rows a batch, no window.
A round asks each of them at concurrency 1, 8 and 32, one row a request, binary tensors (MLServer takes JSON alone);
LitServe and Ray Serve, which burn cores when idle, are stopped while others are asked. MLServer is two peers, without
batches (`mlserver`) and with them (`mlserver_batched`): at each concurrency its better figure is the one to compare
with. `ray` joins requests by its own `serve.batch`; `edgesdk_ray` is `edgesdk serve --engine ray`, with our batcher in
its replica. `raw` is session.run in this process at the best of its batch sizes, `echo` a bare uvicorn that sends the
body back. Before the rounds each server is started alone, once a round and once more, which does not count. Printed are
each server's share of raw, and ours over each peer, round by round, with the spread; --markdown writes the same tables.
Peers are the scripts of `tools/peers/`, each by the Python that has its packages: CONTRIBUTING.md says how to install
them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import requests
from bench_models import BUILT_IN
from serving import EDGESDK
from serving_report import CONCURRENCIES, OURS, Measured, Serving, as_markdown, show

from cloud.server import free_port
from edge_sdk import oip
from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.bundle import open_party
from edge_sdk.errors import EdgeSDKError
from edge_sdk.profile.feeds import random_feeds
from edge_sdk.profile.machine import usable_cpus
from edge_sdk.progress import track
from edge_sdk.tensors import Array

PEERS = Path(__file__).with_name("peers")
MAX_BATCH = 32
START_SECONDS = 60.0
RAW_BATCHES = (1, 8, MAX_BATCH)
BURN_IDLE = ("litserve", "ray", "edgesdk_ray")
JSON_ONLY = ("mlserver", "mlserver_batched")
PACKAGES = {"triton": "nvidia-pytriton", "echo": "uvicorn", "mlserver_batched": "mlserver", "edgesdk_ray": "ray"}
"""Of servers whose package has another name."""


class Server(NamedTuple):
    """The processes of a session, as those of Ray have groups of their own, that serve."""

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
            _signal(_session(self.process.pid), signal.SIGSTOP)

    def go_on(self) -> None:
        """After ``pause``."""
        _signal(_session(self.process.pid), signal.SIGCONT)
        time.sleep(0.3)

    def memory_mib(self) -> float:
        """Of all its processes, shared pages by their parts."""
        total = 0
        for pid in _session(self.process.pid):
            with suppress(OSError, IndexError):  # it has ended meanwhile
                total += int(re.findall(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[0])
        return total / 1024


def _session(leader: int) -> list[int]:
    """The processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getsid(int(folder.name)) == leader:
                found.append(int(folder.name))
    return found


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help=f"a bundle, or {' or '.join(BUILT_IN)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--peer", action="append", default=[], help="NAME, or NAME=PYTHON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="where the tables go as well")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("bench_serving: needs wrk, as Debian and Ubuntu package it")
    texts = []
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as work:
            try:
                build = BUILT_IN.get(model)
                folder = build(Path(work)) if build else Path(model) / "server0"
                found = run(folder, Path(work), arguments.rounds, arguments.seconds, arguments.peer)
            except EdgeSDKError as error:
                sys.exit(f"bench_serving: {error}")
        show(found)
        texts.append(as_markdown(found))
        if arguments.markdown:
            arguments.markdown.write_text("\n".join(texts))


class Peers(NamedTuple):
    """What is started, and how each is asked.

    Attributes:
        commands: by server.
        model: its name there.
        path: of inference.
        environment: that tells a peer's script what to serve, and with what.
        work: a folder for logs.
        feeds: of one request.
    """

    commands: dict[str, list[str]]
    model: str
    path: str
    environment: dict[str, str]
    work: Path
    feeds: Mapping[str, Array]

    @contextmanager
    def started(self, name: str) -> Iterator[Server]:
        """One of them, which has answered a request."""
        with _started(name, self.commands[name], self.model, self.environment, self.work) as server:
            headers, body = _json(self.feeds) if name in JSON_ONLY else _binary(self.feeds)
            answer = requests.post(server.url + self.path, data=body, headers=headers, timeout=30)
            if answer.status_code != 200:
                log = server.log.read_text()[-2000:]
                sys.exit(f"bench_serving: {name} answered {answer.status_code}: {answer.text[:500]}\n{log}")
            yield server


def run(folder: Path, work: Path, rounds: int, seconds: int, names: list[str]) -> Serving:
    """Measure all."""
    bundle = open_party(folder, "server")
    part = bundle.manifest.parts[0]
    onnx = work / "model.onnx"
    onnx.write_bytes(bundle.onnx(part))
    threads = usable_cpus()
    path = f"/v2/models/{part.name}/infer"
    feeds = random_feeds(part.inputs, 1)
    environment = {
        "BENCH_MODEL": str(onnx),
        "BENCH_SERVER": str(folder),
        "BENCH_NAME": part.name,
        "BENCH_THREADS": str(threads),
        "BENCH_BATCH": str(MAX_BATCH),
        "BENCH_WORK": str(work),
    }
    peers = Peers(_commands(folder, threads, names), part.name, path, environment, work, feeds)
    versions = {name: _version(name, command[0]) for name, command in peers.commands.items()}
    ready: dict[str, list[float]] = {name: [] for name in peers.commands}
    idle: dict[str, list[float]] = {name: [] for name in peers.commands}
    for _ in track(range(rounds + 1), rounds + 1, "starts"):  # the first fills the system's caches
        for name in peers.commands:
            with peers.started(name) as server:
                ready[name].append(server.ready_seconds)
                idle[name].append(server.memory_mib())
    calls = {kind: _wrk_script(work, kind, path, *call(feeds)) for kind, call in (("binary", _binary), ("json", _json))}
    found: dict[str, dict[int, list[Measured]]] = {name: {c: [] for c in CONCURRENCIES} for name in peers.commands}
    raw: list[list[float]] = []
    with ExitStack() as stack:
        servers = []
        for name in peers.commands:
            servers.append(stack.enter_context(peers.started(name)))
            servers[-1].pause()
        session = stack.enter_context(OnnxRuntimeBackend(onnx.read_bytes(), threads))
        for _ in track(range(rounds + 1), rounds + 1, "rounds"):  # the first warms up
            raw.append(_raw_rates(session, seconds))
            for server in servers:
                server.go_on()
                for concurrency in CONCURRENCIES:
                    found[server.name][concurrency].append(_wrk(calls[server.speaks], server, concurrency, seconds))
                server.pause()
        busy = {server.name: server.memory_mib() for server in servers}
    return Serving(
        model=folder.parent.name,
        seconds=seconds,
        raw={size: [rates[i] for rates in raw[1:]] for i, size in enumerate(RAW_BATCHES)},
        found={name: {c: each[1:] for c, each in by.items()} for name, by in found.items()},
        ready={name: each[1:] for name, each in ready.items()},
        idle={name: each[1:] for name, each in idle.items()},
        busy=busy,
        versions=versions,
    )


def _commands(folder: Path, threads: int, peers: list[str]) -> dict[str, list[str]]:
    """Of ours, of ``echo`` and of the peers."""
    options = ["--threads", str(threads), "--max-batch", str(MAX_BATCH), "--max-waiting", "1024"]
    commands = {OURS: [*EDGESDK, "serve", str(folder), *options], "echo": [sys.executable, str(PEERS / "echo.py")]}
    for peer in peers:
        name, _, python = peer.partition("=")
        script = PEERS / f"on_{name}.py"  # by its own name, it would be imported in the package's place
        if not script.is_file():
            known = ", ".join(sorted(path.stem.removeprefix("on_") for path in PEERS.glob("on_*.py")))
            sys.exit(f"bench_serving: no peer {name!r}; there are {known}")
        commands[name] = [python or sys.executable, str(script)]
    return commands


def _version(name: str, python: str) -> str:
    """Of a server's package, of its ONNX Runtime and of its Python, as that Python has them."""
    packages = [PACKAGES.get(name, name), *(["onnxruntime"] if name != "echo" else [])]
    code = "import sys, platform, importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), "
    code += "f'Python {platform.python_version()}', sep=', ')"
    try:
        done = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=False)
    except OSError as error:
        sys.exit(f"bench_serving: {name}: {python} cannot be run ({error.strerror})")
    if done.returncode:
        sys.exit(
            f"bench_serving: {name}: {python} lacks one of {', '.join(packages)}; CONTRIBUTING.md has the commands"
        )
    return done.stdout.strip()


@contextmanager
def _started(name: str, command: list[str], model: str, environment: Mapping[str, str], work: Path) -> Iterator[Server]:
    port = free_port("127.0.0.1", 0)
    environment = {**os.environ, **environment, "BENCH_PORT": str(port)}
    if name == OURS:
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
            _signal(_session(process.pid), signal.SIGKILL)


def _is_ready(url: str) -> bool:
    try:
        return requests.get(url, timeout=1).status_code == 200
    except requests.RequestException:
        return False


def _binary(feeds: Mapping[str, Array]) -> tuple[dict[str, str], bytes]:
    """A request as our device sends it."""
    headers, chunks = oip.encode_request(feeds, request_id="1")
    return headers, b"".join(chunks)


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


if __name__ == "__main__":
    main()
