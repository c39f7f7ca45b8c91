"""A server at twice its capacity, then terminated, then killed: what is lost, what grows, what is answered wrongly.

    python tools/overload.py BUNDLE [--minutes 10] [--factor 2] [--connections 96] [--workers 1]

1. Capacity: answers a second to 16 connections that each wait for their answer.
2. Requests leave at FACTOR times that rate, whatever comes back. Every answer is compared with what ONNX Runtime gives
   for that request's own features; the others must be 503 with Retry-After; as the queue has a bound, so has the time
   that accepted requests take; the server's memory must not grow. Where fewer than nine tenths of these requests could
   be sent in the time that it took, nothing is proven, and the exit status says so. Its last line is for quoting.
3. SIGTERM in the middle: every request that the server read is answered, rightly or with a refusal, and every one that
   its log calls answered has reached its client; one that it had not read by then may find its connection refused or
   reset. And once more with requests that are known to wait there: all of them are answered.
4. SIGKILL, and a new server at the same address: clients go on by themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import requests
from load import KINDS, NO_ANSWER, NOT_TAKEN, Load, Outcome, Questions
from serving import process_of, resident_kib, serve

from cloud.batcher import LANES
from cloud.server import free_port
from edge_sdk.cli.tables import print_table
from edge_sdk.client import Client
from edge_sdk.errors import EdgeSDKError, RemoteError
from edge_sdk.profile.machine import Machine
from edge_sdk.progress import bar

MAX_WAITING = 64
ROWS = 8
ENOUGH = 0.9
"""Of the rate that was meant to be sent."""
UNANSWERED = {NOT_TAKEN: "connection refused, or reset on an unread request", NO_ANSWER: "read and not answered"}


def main() -> None:
    """Parse the command line, load and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--factor", type=float, default=2.0)
    parser.add_argument(
        "--connections",
        type=int,
        default=96,
        help="for each worker: more than may wait and run, so that some are refused",
    )
    parser.add_argument("--workers", type=int, default=1, help="of the server, each with a queue of its own")
    arguments = parser.parse_args()
    try:
        folder = arguments.bundle / "server0"
        questions = Questions(folder)
        print(f"{arguments.bundle}, {Machine.here()}", flush=True)
        workers, seconds = arguments.workers, arguments.minutes * 60
        connections = arguments.connections * workers
        proven, line = overload(folder, questions, seconds, arguments.factor, connections, workers)
        fine = terminated(folder, questions, connections, workers)
        fine &= drained(folder, questions)
        fine &= killed(folder, questions, workers)
    except EdgeSDKError as error:
        sys.exit(f"overload: {error}")
    print(f"{line}; SIGTERM and SIGKILL: {_verdict(fine)}")
    sys.exit(0 if proven and fine else 1)


def overload(
    folder: Path, questions: Questions, seconds: float, factor: float, connections: int, workers: int
) -> tuple[bool, str]:
    """Twice the capacity: whether all was well, and a line that says what was."""
    with process_of(_serve(folder, workers)) as (url, server), bar("overload") as advance:
        load = Load(url, questions, connections)
        memory: list[int] = []

        async def run() -> tuple[float, int, float]:
            await load.closed(3, 16)
            capacity = await load.closed(10, 16)
            before, began = len(load.outcomes), time.perf_counter()
            loading = asyncio.create_task(load.opened(seconds, capacity * factor))
            # The first tenth of the time fills pools and queues.
            for step in range(20):
                await asyncio.sleep(seconds / 20)
                memory.append(resident_kib(server.pid))
                advance(step + 1, 20)
            await loading
            took = time.perf_counter() - began
            await load.hang_up()
            return capacity, before, took

        capacity, before, took = asyncio.run(run())
    found = load.outcomes[before:]
    times = np.array([each.ms for each in found if each.status == 200])
    statuses = Counter(each.status for each in found)
    wrong = sum(not each.right for each in found)
    growth = memory[-1] / memory[1] - 1
    sent = len(found) / took / capacity
    # What waits is run within the queues' length over the capacity; the load generator has its share of the machine.
    bound = 2e3 * workers * (MAX_WAITING + 16) / capacity
    p99 = float(np.percentile(times, 99))
    fine = not wrong and growth < 0.05 and p99 <= bound and statuses[503] > 0 and set(statuses) <= {200, 503}
    proven = sent >= ENOUGH * factor
    verdict = _verdict(fine) if proven else f"NOT PROVEN, as {sent:.2f} times was all that could be sent"
    print_table(
        f"{factor:g} times the capacity, {seconds / 60:g} min, {MAX_WAITING} may wait: {verdict}",
        ["", "found"],
        [
            ["capacity, answers/s", f"{capacity:,.0f}"],
            ["sent", f"{len(found):,} in {took:,.1f} s ({sent:.2f} times the capacity)"],
            ["not sent, all connections waited", f"{load.late:,}"],
            *([UNANSWERED.get(each, str(each)), f"{count:,}"] for each, count in sorted(statuses.items())),
            ["answers of another request, or refusals without Retry-After", str(wrong)],
            ["accepted: p50, p99 ms", f"{np.median(times):.1f}, {p99:.1f} (bound {bound:.0f})"],
            ["memory, KiB, after a tenth and at the end", f"{memory[1]:,}, {memory[-1]:,} ({growth:+.1%})"],
        ],
    )
    line = (
        f"{verdict}: {sent:.2f} times the capacity of {capacity:,.0f} answers/s for {took / 60:.1f} min, "
        f"{workers} worker{'s' * (workers > 1)}: {statuses[200]:,} answered with p99 {p99:.0f} ms, {statuses[503]:,} "
        f"refused, {wrong} wrong, memory {growth:+.1%}"
    )
    return fine and proven, line


def _serve(folder: Path, workers: int, *options: str) -> tuple[str, ...]:
    return serve(folder, "--workers", str(workers), "--max-waiting", str(MAX_WAITING), *options)


def terminated(folder: Path, questions: Questions, connections: int, workers: int) -> bool:
    """SIGTERM in the middle of it."""
    answered: set[str] = set()
    command = _serve(folder, workers, "--log-requests", "--log-format", "json")
    with process_of(command) as (url, server):
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
    fine, rows = after_sigterm(load.outcomes, answered)
    fine &= status == 0
    print_table(
        f"SIGTERM under that load: {_verdict(fine)}",
        ["", "found"],
        [*rows, ["exit status of the server", str(status)]],
    )
    return fine


def after_sigterm(outcomes: list[Outcome], answered: set[str]) -> tuple[bool, list[list[str]]]:
    """Whether nothing was lost that the server had read, and what became of all requests.

    Args:
        outcomes: of the clients.
        answered: those that the server's log calls so.
    """
    reached = {each.request_id for each in outcomes if each.status == 200}
    lost = sum(each.status == NO_ANSWER for each in outcomes)
    wrong = sum(each.status not in UNANSWERED and not each.right for each in outcomes)
    rows = [
        ["answered, as the server's log says", f"{len(answered):,}"],
        ["of them not arrived", str(len(answered - reached))],
        ["refused with 503", f"{sum(each.status == 503 for each in outcomes):,}"],
        [UNANSWERED[NOT_TAKEN], f"{sum(each.status == NOT_TAKEN for each in outcomes):,}"],
        [UNANSWERED[NO_ANSWER], str(lost)],
        ["wrong answers, or refusals without Retry-After", str(wrong)],
    ]
    return bool(answered) and answered <= reached and not lost and not wrong, rows


def drained(folder: Path, questions: Questions) -> bool:
    """SIGTERM while as many requests as may wait do so, each of some rows; of one process, which knows what it has."""
    outcomes: Counter[str] = Counter()
    with process_of(_serve(folder, 1)) as (url, server):

        def client() -> None:
            with Client(url, timeout_s=120) as asking:
                try:
                    outcomes["right" if questions.ask(asking, 0, ROWS) else "wrong"] += 1
                except RemoteError as error:
                    outcomes[str(error)] += 1

        threads = [threading.Thread(target=client) for _ in range(MAX_WAITING)]
        for thread in threads:
            thread.start()
        waiting, arrived, end = 0, 0, time.monotonic() + 30
        while arrived < MAX_WAITING and time.monotonic() < end:
            waiting, answered = _waiting_and_answered(url)
            arrived = waiting + answered + LANES
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


def _waiting_and_answered(url: str) -> tuple[int, int]:
    """Requests in the server's queue, and those that it has answered, as its metrics say."""
    text = requests.get(f"{url}/metrics", timeout=30).text
    names = ("nv_inference_pending_request_count", "nv_inference_request_success")
    waiting, answered = (re.findall(rf"^{name}{{\S* (\S+)$", text, re.MULTILINE)[0] for name in names)
    return int(float(waiting)), int(float(answered))


def _read_log(server: subprocess.Popen[str], answered: set[str]) -> None:
    assert server.stderr is not None
    for line in server.stderr:
        told = json.loads(line) if line.startswith("{") else {}
        if told.get("message") == "infer" and told["status"] == 200:
            answered.add(told["request_id"])


def killed(folder: Path, questions: Questions, workers: int) -> bool:
    """SIGKILL, and a new server at the same address."""
    port = free_port("127.0.0.1", 0)
    command = serve(folder, "--workers", str(workers), "--port", str(port))  # of two ports the second counts
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
