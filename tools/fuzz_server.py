"""Wrong requests by the hundred thousand against a real server: no 5xx but 503, none unanswered, no crash, no growth.

    python tools/fuzz_server.py BUNDLE [--bodies 100000] [--messages 20000] [--seed 0]
        [--schemathesis PATH | --without-schemathesis]

Most bodies are a right request of the binary framing with something changed: bytes, lengths, JSON values, headers,
paths, HTTP's own framing. One that is whole must be answered, however late; another one, or its connection closed;
504 is right where the request set a timeout that has passed. The messages go to gRPC: bytes that are none of
protobuf's, and messages that are but mean nothing. After them the server must still give the right answer to the right
request, in the memory that it had after a tenth of them; a thread beside it collects Python's garbage, which otherwise
comes and goes in waves of some 40,000 messages. Then schemathesis (`pip install schemathesis`, in an environment of its
own) tests every call of the server's OpenAPI description; that it does not may be asked for, and is then said.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import wrong_grpc
import wrong_http
from right_request import Right
from serving import EDGESDK, process_of, resident_kib, serve

from cloud.server import free_port
from edge_sdk.cli.tables import print_table
from edge_sdk.errors import EdgeSDKError
from edge_sdk.profile.machine import Machine
from edge_sdk.progress import bar

THREADS = 4
STEPS = 20
SETTLED_SECONDS = 3.0
COLLECTING = """
import gc, sys, threading, time
from cloud.memory import release_freed
from edge_sdk.cli import main

def collect():
    while True:
        time.sleep(1)
        gc.collect()
        release_freed()

threading.Thread(target=collect, daemon=True).start()
sys.argv[0] = "edgesdk"
main()
"""
WELL = "no failure"
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def main() -> None:
    """Parse the command line, send and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--bodies", type=int, default=100_000)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schemathesis", default="schemathesis", help="its command")
    parser.add_argument("--without-schemathesis", action="store_true")
    arguments = parser.parse_args()
    schemathesis = None if arguments.without_schemathesis else shutil.which(arguments.schemathesis)
    if schemathesis is None and not arguments.without_schemathesis:
        parser.error(f"no command {arguments.schemathesis!r}; give --schemathesis PATH, or --without-schemathesis")
    try:
        fine = run(arguments.bundle, arguments.bodies, arguments.messages, arguments.seed, schemathesis)
    except EdgeSDKError as error:
        sys.exit(f"fuzz_server: {error}")
    sys.exit(0 if fine else 1)


def run(bundle: Path, bodies: int, messages: int, seed: int, schemathesis: str | None) -> bool:
    """Whether all was well."""
    right = Right(bundle / "server0")
    port = free_port("127.0.0.1", 0)
    served = serve(bundle / "server0", "--grpc-port", str(port), "--max-body-mib", "1", "--log-requests")
    command = (sys.executable, "-c", COLLECTING, *served[len(EDGESDK) :])
    with process_of(command) as (url, server), ExitStack() as stack:
        address = f"127.0.0.1:{port}"
        _check(right, url, address)
        log: Counter[str] = Counter()
        threading.Thread(target=_read, args=(server, log), daemon=True).start()
        over_http = [wrong_http.Sender(url) for _ in range(THREADS)]
        over_grpc = [stack.enter_context(closing(wrong_grpc.MessageSender(address))) for _ in range(THREADS)]
        mutators = [wrong_http.Mutator(right, seed + i) for i in range(THREADS)]
        message_mutators = [wrong_grpc.MessageMutator(right, seed + i) for i in range(THREADS)]
        sends = [_body(*each) for each in zip(mutators, over_http, strict=True)]
        calls = [_message(*each) for each in zip(message_mutators, over_grpc, strict=True)]
        memory = []
        with bar("steps") as advance:
            for step in range(STEPS):
                _send_all(sends, bodies * (step + 1) // STEPS - bodies * step // STEPS)
                _send_all(calls, messages * (step + 1) // STEPS - messages * step // STEPS)
                advance(step + 1, STEPS)
                if step + 1 in (STEPS // 10, STEPS):
                    time.sleep(SETTLED_SECONDS)
                    memory.append(resident_kib(server.pid))
        _check(right, url, address)
        described = _described(schemathesis, url, seed) if schemathesis else "not asked"
        _check(right, url, address)
        alive = server.poll() is None
    statuses = sum((sender.statuses for sender in over_http), Counter[str]())
    codes = sum((sender.codes for sender in over_grpc), Counter[str]())
    wrong = [name for name in statuses if name not in wrong_http.FINE]
    wrong += [name for name in codes if name not in wrong_grpc.FINE]
    growth = memory[1] / memory[0] - 1
    fine = not wrong and alive and growth < 0.05 and not log["errors"] and described in (WELL, "not asked")
    rows = [[name, f"{count:,}"] for found in (statuses, codes) for name, count in sorted(found.items())]
    rows += [["memory, KiB, after a tenth", f"{memory[0]:,}"], ["at the end", f"{memory[1]:,} ({growth:+.1%})"]]
    rows += [["errors in the log", str(log["errors"])], ["schemathesis", described]]
    rows += [["the right request, at the end", "answered rightly" if alive else "the server has ended"]]
    rows += [["must not be answered", ", ".join(wrong) or "nothing"]]
    title = f"{bodies:,} bodies and {messages:,} messages, seed {seed}: {'fine' if fine else 'NOT FINE'}"
    print_table(f"{title}\n{Machine.here()}", ["answered", "times"], rows)
    for line in log:
        if line != "errors":
            print(line)
    return fine


def _check(right: Right, url: str, address: str) -> None:
    right.check(url)
    wrong_grpc.check(right, address)


def _described(schemathesis: str, url: str, seed: int) -> str:
    """What schemathesis says of every call that the server describes."""
    command = [schemathesis, "run", f"{url}/openapi.json", "--seed", str(seed), "--max-examples", "200"]
    done = subprocess.run([*command, "--checks", CHECKS], capture_output=True, text=True, check=False)
    return WELL if done.returncode == 0 else (done.stdout + done.stderr)[-3000:]


def _body(mutator: wrong_http.Mutator, sender: wrong_http.Sender) -> Callable[[], None]:
    return lambda: sender.send(*mutator.requests())


def _message(mutator: wrong_grpc.MessageMutator, sender: wrong_grpc.MessageSender) -> Callable[[], None]:
    return lambda: sender.send(*mutator.call())


def _send_all(sends: list[Callable[[], None]], count: int) -> None:
    """So many in all, from a thread each; an error of this script's own ends it."""

    def work(index: int) -> None:
        for _ in range(index, count, len(sends)):
            sends[index]()

    with ThreadPoolExecutor(len(sends)) as threads:
        list(threads.map(work, range(len(sends))))


def _read(server: subprocess.Popen[str], log: Counter[str]) -> None:
    """Count errors, and keep the first words of each kind."""
    assert server.stderr is not None
    for line in server.stderr:
        if " ERROR " in line or "Traceback" in line:
            log["errors"] += 1
            if " ERROR " in line and len(log) < 10:
                log[line.partition(" ERROR ")[2].strip()[:150]] += 1


if __name__ == "__main__":
    main()
