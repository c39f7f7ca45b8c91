"""Wrong requests by the hundred thousand against a real server: no 5xx but 503 and 504, no crash, no growth.

    python tools/fuzz_server.py BUNDLE [--bodies 100000] [--seed 0] [--schemathesis PATH]

Most bodies are a right request of the binary framing with something changed: bytes, lengths, JSON values, headers,
HTTP's own framing. After them the server must still give the right answer to the right request, in the memory that it
had after a tenth of them. With schemathesis at hand (`pip install schemathesis`, in an environment of its own) the
server's OpenAPI description is tested as well.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from serving import EDGESDK, process_of, resident_kib

from edge_sdk import oip
from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.bundle import open_party
from edge_sdk.cli.tables import print_table
from edge_sdk.client import Client
from edge_sdk.errors import EdgeSDKError
from edge_sdk.profile.feeds import random_feeds
from edge_sdk.profile.machine import Machine
from edge_sdk.progress import bar

THREADS = 4
FINE = {200, 400, 404, 405, 411, 413, 414, 415, 431, 501, 503, 504}
"""What may be answered; 501 is HTTP's own, for a transfer coding that is not known, 504 for a request's own
timeout, of a microsecond."""

ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, -(2**63), 1e308, -0.0, "", "x", "é\u0000", "FP32", "BYTES",
    [], {}, [[]], {"a": 1}, "9" * 5000,
]  # fmt: skip


class Right:
    """The request that all others are made from, and its answer."""

    def __init__(self, folder: Path) -> None:
        party = open_party(folder, "server")
        part = party.manifest.parts[0]
        feeds = random_feeds(part.inputs, 2)
        self.feeds, self.model = feeds, part.name
        with OnnxRuntimeBackend(party.onnx(part)) as backend:
            self.answer = backend.run(feeds)
        self.headers, chunks = oip.encode_request(feeds, "id", {"timeout": 10_000_000})
        self.json, self.tensors = json.loads(chunks[0]), b"".join(chunks[1:])

    def check(self, url: str) -> None:
        """Ask it, of a server that must still be right."""
        with Client(url) as client:
            outputs, _ = client.infer(self.model, self.feeds)
        for name, expected in self.answer.items():
            np.testing.assert_allclose(outputs[name], expected, atol=1e-4)


class Mutator:
    """Wrong requests, the same for the same seed."""

    def __init__(self, right: Right, seed: int) -> None:
        self._right, self._random = right, random.Random(seed)  # noqa: S311  (not a secret)
        self._kinds: list[Callable[[], tuple[bytes, bytes, bytes]]] = [
            self._flipped, self._cut, self._grown, self._length, self._value, self._value, self._value, self._deep,
            self._noise, self._encoded, self._headers,
        ]  # fmt: skip

    def request(self) -> bytes:
        """One, whole, as it goes over the socket."""
        target, head, body = self._random.choice(self._kinds)()
        framing = self._random.random()
        if framing < 0.85:
            length = b"Content-Length: %d\r\n\r\n" % len(body)
        elif framing < 0.95:
            chunks = [body[i : i + 4096] for i in range(0, len(body), 4096)]
            body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
            length = b"Transfer-Encoding: chunked\r\n\r\n"
        else:
            odd = (b"-1", b"x", b"1, 2", b"99999999999999999999", b"%d" % (len(body) + 1), b"")
            length = b"Content-Length: %b\r\n\r\n" % self._random.choice(odd)
        return b"POST %b HTTP/1.1\r\nHost: x\r\n%b%b%b" % (target, head, length, body)

    def _whole(self, content: dict[str, Any]) -> tuple[bytes, bytes]:
        text = json.dumps(content).encode()
        return b"%b: %d\r\n" % (oip.HEADER_LENGTH.encode(), len(text)), text + self._right.tensors

    def _path(self) -> bytes:
        return f"/v2/models/{self._right.model}/infer".encode()

    def _flipped(self) -> tuple[bytes, bytes, bytes]:
        head, body = self._whole(self._right.json)
        changed = bytearray(body)
        for _ in range(self._random.choice((1, 2, 8, 64))):
            changed[self._random.randrange(min(len(changed), 400))] = self._random.randrange(256)
        return self._path(), head, bytes(changed)

    def _cut(self) -> tuple[bytes, bytes, bytes]:
        head, body = self._whole(self._right.json)
        return self._path(), head, body[: self._random.randrange(len(body))]

    def _grown(self) -> tuple[bytes, bytes, bytes]:
        head, body = self._whole(self._right.json)
        return self._path(), head, body + self._random.randbytes(self._random.choice((1, 7, 4096)))

    def _length(self) -> tuple[bytes, bytes, bytes]:
        _, body = self._whole(self._right.json)
        odd = (b"-1", b"0", b"1", b"%d" % len(body), b"%d" % (len(body) + 1), b"1e3", b"x", b"\xff", b"9" * 400, b"")
        return self._path(), b"%b: %b\r\n" % (oip.HEADER_LENGTH.encode(), self._random.choice(odd)), body

    def _value(self) -> tuple[bytes, bytes, bytes]:
        """Something in the JSON is removed, replaced, doubled or added."""
        content = json.loads(json.dumps(self._right.json))
        for _ in range(self._random.choice((1, 1, 2, 3))):
            place: Any = content
            while True:
                keys = list(place) if isinstance(place, dict) else list(range(len(place)))
                key = self._random.choice([*keys, None]) if keys else None
                inner = place[key] if key is not None else None
                if key is None or not isinstance(inner, dict | list) or self._random.random() < 0.3:
                    break
                place = inner
            self._change(place, key)
        return self._path(), *self._whole(content)

    def _change(self, place: Any, key: Any) -> None:
        value = self._random.choice(ODD)
        if isinstance(place, list):
            if key is None or self._random.random() < 0.3:
                place.append(value)
            elif self._random.random() < 0.5:
                place[key] = value
            else:
                place.extend([place[key]] * self._random.choice((1, 300)))
        elif key is not None and self._random.random() < 0.3:
            del place[key]
        else:
            names = [
                "binary_data_size",
                "binary_data",
                "binary_data_output",
                "timeout",
                "edgesdk_bundle_id",
                "outputs",
                "x",
            ]
            place[key if key is not None else self._random.choice(names)] = value

    def _deep(self) -> tuple[bytes, bytes, bytes]:
        depth = self._random.choice((50, 2000, 100_000))
        opened, closed = self._random.choice(((b"[", b"]"), (b'{"a":', b"}")))
        return self._path(), b"", b'{"inputs":' + opened * depth + b"1" + closed * depth + b"}"

    def _noise(self) -> tuple[bytes, bytes, bytes]:
        return self._path(), b"", self._random.randbytes(self._random.randrange(400))

    def _encoded(self) -> tuple[bytes, bytes, bytes]:
        import zlib

        head, body = self._whole(self._right.json)
        packed = bytearray(zlib.compress(body, 1, wbits=self._random.choice((15, 31, -15))))
        if self._random.random() < 0.7:
            packed[self._random.randrange(len(packed))] ^= 1 << self._random.randrange(8)
        coding = self._random.choice((b"gzip", b"deflate", b"br", b"gzip, gzip", b"\xff"))
        return self._path(), head + b"Content-Encoding: %b\r\n" % coding, bytes(packed)

    def _headers(self) -> tuple[bytes, bytes, bytes]:
        head, body = self._whole(self._right.json)
        odd = (
            b"Accept-Encoding: " + b"gzip;q=x, " * 200 + b"\r\n", b"traceparent: 00-zz\r\n", b"Authorization: \xff\r\n",
            b"Content-Length: 3\r\n", b"Transfer-Encoding: gzip\r\n", b"X: " + b"a" * 40_000 + b"\r\n", b"\x00: 1\r\n",
            b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Upgrade: websocket\r\nConnection: upgrade\r\n",
        )  # fmt: skip
        paths = (self._path(), b"/v2/models/%00/infer", b"/v2/models/" + b"a" * 9000, b"*", b"//", b"/v2/\xff")
        return self._random.choice(paths), head + self._random.choice(odd), body


class Sender:
    """One connection at a time; counts what is answered."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 0)
        self._socket: socket.socket | None = None
        self.statuses: Counter[str] = Counter()

    def send(self, request: bytes) -> None:
        """Send, and read one answer; a connection that the server ends, or that it waits on, is given up."""
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._address, 20)
                self._socket.settimeout(0.25)
            self._socket.sendall(request)
            status, closes = _answer(self._socket)
        except TimeoutError:
            self.statuses["waits for more"] += 1
            closes = True
        except OSError:
            self.statuses["hung up"] += 1
            closes = True
        else:
            self.statuses[str(status)] += 1
        if closes and self._socket is not None:
            self._socket.close()
            self._socket = None


def _answer(connection: socket.socket) -> tuple[int, bool]:
    """Status, and whether the connection can serve no further request."""
    connection.settimeout(0.25)
    found = b""
    while b"\r\n\r\n" not in found:
        chunk = connection.recv(65536)
        if not chunk:
            raise ConnectionResetError
        found += chunk
        connection.settimeout(20)
    head, _, body = found.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if status == 100:
        return _answer(connection)
    fields = {
        name.strip().lower(): value.strip() for name, _, value in (x.partition(b":") for x in head.split(b"\r\n"))
    }
    length = int(fields.get(b"content-length", b"0"))
    while len(body) < length:
        chunk = connection.recv(65536)
        if not chunk:
            raise ConnectionResetError
        body += chunk
    # What follows a refusal may be the rest of a body that was never read: a new connection begins clean.
    return status, status != 200 or fields.get(b"connection") == b"close" or len(body) > length


def main() -> None:
    """Parse the command line, send and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--bodies", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schemathesis", default=shutil.which("schemathesis"), help="its command")
    arguments = parser.parse_args()
    try:
        sys.exit(0 if run(arguments.bundle, arguments.bodies, arguments.seed, arguments.schemathesis) else 1)
    except EdgeSDKError as error:
        sys.exit(f"fuzz_server: {error}")


def run(bundle: Path, bodies: int, seed: int, schemathesis: str | None) -> bool:
    """Whether all was well."""
    right = Right(bundle / "server0")
    command = (*EDGESDK, "serve", str(bundle / "server0"), "--port", "0", "--max-body-mib", "1", "--log-requests")
    with process_of(command) as (url, server), ExitStack() as stack:
        right.check(url)
        log: Counter[str] = Counter()
        threading.Thread(target=_read, args=(server, log), daemon=True).start()
        advance = stack.enter_context(bar("bodies"))
        senders = [Sender(url) for _ in range(THREADS)]
        first = bodies // 10
        _send_all(right, senders, first, seed, lambda done: advance(done, bodies))
        warm = resident_kib(server.pid)
        _send_all(right, senders, bodies - first, seed + 1000, lambda done: advance(first + done, bodies))
        right.check(url)
        after = resident_kib(server.pid)
        described = "not installed"
        if schemathesis:
            done = subprocess.run(
                [schemathesis, "run", f"{url}/openapi.json", "--seed", str(seed), "--max-examples", "200",
                 "--exclude-path-regex", "repository", "--checks",
                 "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            described = "no failure" if done.returncode == 0 else done.stdout[-3000:]
            right.check(url)
        alive = server.poll() is None
    statuses = sum((sender.statuses for sender in senders), Counter[str]())
    wrong = [name for name in statuses if name.isdigit() and int(name) not in FINE]
    growth = after / warm - 1
    rows = [[name, f"{count:,}"] for name, count in sorted(statuses.items())]
    rows += [["memory, KiB, after a tenth", f"{warm:,}"], ["memory, KiB, at the end", f"{after:,} ({growth:+.1%})"]]
    rows += [["errors in the log", str(log["errors"])], ["schemathesis", described]]
    rows += [["the right request, at the end", "answered rightly" if alive else "the server has ended"]]
    print_table(f"{bodies:,} bodies, seed {seed}\n{Machine.here()}", ["answered", "times"], rows)
    return not wrong and alive and growth < 0.05 and not log["errors"] and described in ("no failure", "not installed")


def _send_all(right: Right, senders: list[Sender], count: int, seed: int, done: Callable[[int], None]) -> None:
    share = count // len(senders)

    def work(index: int) -> None:
        mutator, sender = Mutator(right, seed + index), senders[index]
        for i in range(share):
            sender.send(mutator.request())
            if index == 0 and i % 50 == 0:
                done(i * len(senders))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(senders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _read(server: subprocess.Popen[str], log: Counter[str]) -> None:
    assert server.stderr is not None
    for line in server.stderr:
        log["errors"] += " ERROR " in line or "Traceback" in line


if __name__ == "__main__":
    main()
