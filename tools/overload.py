"""A server at twice its capacity, then terminated, then killed: what is lost, what grows, what is answered wrongly.

    python tools/overload.py BUNDLE [--minutes 10] [--factor 2] [--connections 96]

1. Capacity: answers a second to 16 connections that each wait for their answer.
2. Requests leave at FACTOR times that rate, whatever comes back. Every answer is compared with what ONNX Runtime gives
   for that request's own features; the others must be 503 with Retry-After; as the queue has a bound, so has the time
   that accepted requests take; the server's memory must not grow.
3. SIGTERM in the middle: every request that the server's log calls answered has reached its client. And once more with
   requests that are known to wait there: all of them are answered.
4. SIGKILL, and a new server at the same address: clients go on by themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import requests
from serving import process_of, resident_kib, serve

from edge_sdk import oip
from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.bundle import open_party
from edge_sdk.cli.tables import print_table
from edge_sdk.client import Client
from edge_sdk.errors import EdgeSDKError, RemoteError
from edge_sdk.profile.machine import Machine
from edge_sdk.progress import bar

KINDS = 64
MAX_WAITING = 64
ROWS = 8
TOLERANCE = 1e-3


class Questions:
    """Requests that differ, and the answer to each."""

    def __init__(self, folder: Path) -> None:
        party = open_party(folder, "server")
        part = party.manifest.parts[0]
        spec = part.inputs[0]
        random = np.random.default_rng(0)
        shape = (KINDS, *(size or 0 for size in spec.shape[1:]))
        values = random.random(shape) * random.random((KINDS, *[1] * (len(shape) - 1)))
        self.model, self._output = part.name, part.outputs[0].name
        self.feeds = (values * (255 if spec.numpy_dtype.kind == "u" else 1)).astype(spec.numpy_dtype)
        self._input = spec.name
        with OnnxRuntimeBackend(party.onnx(part)) as backend:
            self.answers = backend.run({spec.name: self.feeds})[self._output]

    def request(self, kind: int, request_id: str) -> bytes:
        """Whole, as it goes over the socket."""
        headers, chunks = oip.encode_request({self._input: self.feeds[kind : kind + 1]}, request_id)
        body = b"".join(chunks)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"POST /v2/models/{self.model}/infer HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    def is_right(self, kind: int, request_id: str, length: str | None, body: bytes) -> bool:
        """Whether an answer is this request's."""
        answer = oip.decode_response(body, length)
        found = answer.outputs[self._output]
        return answer.id == request_id and bool(np.abs(found - self.answers[kind]).max() <= TOLERANCE)

    def ask(self, client: Client, kind: int, rows: int = 1) -> bool:
        """So many from this one on in one request, by our own client: whether the answer is right."""
        outputs, _ = client.infer(self.model, {self._input: self.feeds[kind : kind + rows]})
        return bool(np.abs(outputs[self._output] - self.answers[kind : kind + rows]).max() <= TOLERANCE)


class Outcome(NamedTuple):
    """Of one request: status, 0 for a connection that ended; milliseconds; and whether the answer was its own."""

    request_id: str
    status: int
    ms: float
    right: bool


class Load:
    """Connections to a server, and what came back."""

    def __init__(self, url: str, questions: Questions, connections: int) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._questions = questions
        self._free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter] | None] = asyncio.Queue()
        for _ in range(connections):
            self._free.put_nowait(None)
        self.outcomes: list[Outcome] = []
        self.late = 0
        """Requests that were not sent, because all connections waited."""
        self._sent = 0

    async def one(self) -> None:
        """Send one request on a free connection; note what becomes of it."""
        self._sent += 1
        kind, request_id = self._sent % KINDS, str(self._sent)
        connection = await self._free.get()
        began = time.perf_counter()
        status, right = 0, False
        try:
            if connection is None:
                connection = await asyncio.open_connection(self._host, self._port)
            reader, writer = connection
            writer.write(self._questions.request(kind, request_id))
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            fields = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head.split("\r\n"))}
            body = await reader.readexactly(int(fields["content-length"]))
            status = int(head.split(" ", 2)[1])
            right = status == 503 and "retry-after" in fields
            if status == 200:
                right = self._questions.is_right(kind, request_id, fields.get(oip.HEADER_LENGTH.lower()), body)
        except (OSError, asyncio.IncompleteReadError):
            if connection is not None:
                connection[1].close()
            connection = None
        self.outcomes.append(Outcome(request_id, status, (time.perf_counter() - began) * 1e3, right))
        self._free.put_nowait(connection)

    async def closed(self, seconds: float, clients: int) -> float:
        """Answers a second where each of some clients waits for its answer."""
        end = time.perf_counter() + seconds

        async def client() -> None:
            while time.perf_counter() < end:
                await self.one()

        before = len(self.outcomes)
        await asyncio.gather(*(client() for _ in range(clients)))
        return (len(self.outcomes) - before) / seconds

    async def opened(self, seconds: float, rate: float) -> None:
        """Requests at a rate, whatever comes back; one for which no connection is free is not sent."""
        begin, count, tasks = time.perf_counter(), 0, set()
        while (now := time.perf_counter() - begin) < seconds:
            while count < now * rate:
                count += 1
                if self._free.empty():
                    self.late += 1
                    continue
                task = asyncio.create_task(self.one())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)

    async def hang_up(self) -> None:
        """Close all connections."""
        while not self._free.empty():
            connection = self._free.get_nowait()
            if connection is not None:
                connection[1].close()
                with suppress(OSError):
                    await connection[1].wait_closed()


def main() -> None:
    """Parse the command line, load and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--factor", type=float, default=2.0)
    parser.add_argument("--connections", type=int, default=96, help="more than may wait, so that some are refused")
    arguments = parser.parse_args()
    try:
        folder = arguments.bundle / "server0"
        questions = Questions(folder)
        print(f"{arguments.bundle}, {Machine.here()}", flush=True)
        fine = overload(folder, questions, arguments.minutes * 60, arguments.factor, arguments.connections)
        fine &= terminated(folder, questions, arguments.connections)
        fine &= drained(folder, questions)
        fine &= killed(folder, questions)
    except EdgeSDKError as error:
        sys.exit(f"overload: {error}")
    sys.exit(0 if fine else 1)


def overload(folder: Path, questions: Questions, seconds: float, factor: float, connections: int) -> bool:
    """Twice the capacity."""
    with process_of(serve(folder, "--max-waiting", str(MAX_WAITING))) as (url, server), bar("overload") as advance:
        load = Load(url, questions, connections)
        memory: list[int] = []

        async def run() -> tuple[float, int]:
            await load.closed(3, 16)
            capacity = await load.closed(10, 16)
            before = len(load.outcomes)
            # The first tenth of the time fills pools and queues.
            for step in range(20):
                await load.opened(seconds / 20, capacity * factor)
                memory.append(resident_kib(server.pid))
                advance(step + 1, 20)
            await load.hang_up()
            return capacity, before

        capacity, before = asyncio.run(run())
    found = load.outcomes[before:]
    times = np.array([each.ms for each in found if each.status == 200])
    statuses = Counter(each.status for each in found)
    wrong = sum(not each.right for each in found)
    growth = memory[-1] / memory[1] - 1
    # What waits is run within the queue's length over the capacity; the load generator has its share of the machine.
    bound = 2e3 * (MAX_WAITING + 16) / capacity
    p99 = float(np.percentile(times, 99))
    fine = not wrong and growth < 0.05 and p99 <= bound and statuses[503] > 0 and set(statuses) <= {200, 503}
    print_table(
        f"{factor:g} times the capacity, {seconds / 60:g} min, {MAX_WAITING} may wait: {_verdict(fine)}",
        ["", "found"],
        [
            ["capacity, answers/s", f"{capacity:,.0f}"],
            ["sent", f"{len(found):,} ({len(found) / seconds / capacity:.2f} times the capacity)"],
            ["not sent, all connections waited", f"{load.late:,}"],
            *([str(status), f"{count:,}"] for status, count in sorted(statuses.items())),
            ["answers of another request, or refusals without Retry-After", str(wrong)],
            ["accepted: p50, p99 ms", f"{np.median(times):.1f}, {p99:.1f} (bound {bound:.0f})"],
            ["memory, KiB, after a tenth and at the end", f"{memory[1]:,}, {memory[-1]:,} ({growth:+.1%})"],
        ],
    )
    return fine


def terminated(folder: Path, questions: Questions, connections: int) -> bool:
    """SIGTERM in the middle of it."""
    answered: set[str] = set()
    options = ("--max-waiting", str(MAX_WAITING), "--log-requests", "--log-format", "json")
    with process_of(serve(folder, *options)) as (url, server):
        reader = threading.Thread(target=_read_log, args=(server, answered), daemon=True)
        reader.start()
        load = Load(url, questions, connections)

        async def run() -> None:
            loading = asyncio.create_task(load.opened(6, 2 * await load.closed(3, 16)))
            await asyncio.sleep(3)
            server.send_signal(signal.SIGTERM)
            await loading
            await load.hang_up()

        asyncio.run(run())
        status = server.wait(60)
        reader.join(10)
    reached = {each.request_id for each in load.outcomes if each.status == 200}
    wrong = sum(each.status == 200 and not each.right for each in load.outcomes)
    fine = status == 0 and answered <= reached and not wrong and bool(answered)
    print_table(
        f"SIGTERM under that load: {_verdict(fine)}",
        ["", "found"],
        [
            ["answered, as the server's log says", f"{len(answered):,}"],
            ["of them not arrived", str(len(answered - reached))],
            ["wrong answers", str(wrong)],
            ["exit status of the server", str(status)],
        ],
    )
    return fine


def drained(folder: Path, questions: Questions) -> bool:
    """SIGTERM while as many requests as may wait do so, each of some rows."""
    outcomes: Counter[str] = Counter()
    with process_of(serve(folder, "--max-waiting", str(MAX_WAITING))) as (url, server):

        def client() -> None:
            with Client(url, timeout_s=120) as asking:
                try:
                    outcomes["right" if questions.ask(asking, 0, ROWS) else "wrong"] += 1
                except RemoteError as error:
                    outcomes[str(error)] += 1

        threads = [threading.Thread(target=client) for _ in range(MAX_WAITING)]
        for thread in threads:
            thread.start()
        waiting, end = 0, time.monotonic() + 30
        while waiting < MAX_WAITING // 2 and time.monotonic() < end:
            waiting = _waiting(url)
        server.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        status = server.wait(60)
    fine = status == 0 and waiting > 0 and outcomes["right"] == MAX_WAITING
    print_table(
        f"SIGTERM while {waiting} requests of {ROWS} rows wait: {_verdict(fine)}",
        ["", "found"],
        [*([outcome, str(count)] for outcome, count in outcomes.items()), ["exit status of the server", str(status)]],
    )
    return fine


def _waiting(url: str) -> int:
    """Requests in the server's queue, as its metrics say."""
    text = requests.get(f"{url}/metrics", timeout=30).text
    return int(float(re.findall(r"^nv_inference_pending_request_count\S* (\S+)$", text, re.MULTILINE)[0]))


def _read_log(server: subprocess.Popen[str], answered: set[str]) -> None:
    assert server.stderr is not None
    for line in server.stderr:
        told = json.loads(line) if line.startswith("{") else {}
        if told.get("message") == "infer" and told["status"] == 200:
            answered.add(told["request_id"])


def killed(folder: Path, questions: Questions) -> bool:
    """SIGKILL, and a new server at the same address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = (*serve(folder)[:-1], str(port))
    stop, errors, rows = threading.Event(), Counter[str](), [[0, 0, 0] for _ in range(8)]
    phase = 0

    def client(index: int) -> None:
        with Client(f"http://127.0.0.1:{port}", timeout_s=2.0) as asking:
            kind = index
            while not stop.is_set():
                kind = (kind + 1) % KINDS
                try:
                    right = questions.ask(asking, kind)
                except RemoteError as error:
                    errors[type(error).__name__] += 1
                else:
                    rows[index][phase] += right
                    errors["wrong answer"] += not right

    with process_of(command) as (_, first):
        threads = [threading.Thread(target=client, args=(index,)) for index in range(len(rows))]
        for thread in threads:
            thread.start()
        time.sleep(3)
        phase = 1
        first.kill()
        first.wait()
        time.sleep(3)
    with process_of(command):
        phase = 2
        time.sleep(6)
        stop.set()
        for thread in threads:
            thread.join()
    fine = all(row[0] and row[2] for row in rows) and not errors["wrong answer"]
    print_table(
        f"SIGKILL, 3 s without a server, a new one: {_verdict(fine)}",
        ["", "found"],
        [
            ["right answers before", f"{sum(row[0] for row in rows):,}"],
            ["clients that got right answers afterwards", f"{sum(row[2] > 0 for row in rows)} of {len(rows)}"],
            *([f"{name} meanwhile", str(count)] for name, count in errors.items() if count),
            ["wrong answers", str(errors["wrong answer"])],
        ],
    )
    return fine


def _verdict(fine: bool) -> str:
    return "fine" if fine else "NOT FINE"


if __name__ == "__main__":
    main()
