"""Wrong requests over HTTP, made from a right one, and who sends them."""

from __future__ import annotations

import copy
import json
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from right_request import Right

from edge_sdk import oip

OWN_TIMEOUT = "504, by the request's own timeout"
HUNG_UP, WAITED = "hung up", "waited for more, until there was none"
LOST, NO_ANSWER, NO_HTTP = "hung up on a short and whole request", "no answer", "an answer that is no HTTP"
FINE = {"200", "400", "403", "404", "405", "413", "415", "503", OWN_TIMEOUT, HUNG_UP, WAITED}
"""What may become of requests: 403 is for loading and unloading; a connection may end on those behind a wrong one."""

AT_ONCE_SECONDS = 0.25
"""In which most are answered."""
SECONDS = 10.0
"""In which all are, or their connection is closed."""
SHORT = 2**16
"""Bytes that a server has read before it refuses them: of longer ones the rest may make its system take that back."""

ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, -(2**63), 1e308, -0.0, "", "x", "é\u0000", "FP32", "BYTES",
    [], {}, [[]], {"a": 1}, "9" * 5000,
]  # fmt: skip

PATHS = (
    b"/v2/models/NAME/infer", b"/v2/models/NAME/infer", b"/v2/models/NAME/versions/1/infer", b"/v2/models/NAME",
    b"/v2/models/NAME/versions/1", b"/v2/models/NAME/ready", b"/v2/models/NAME/config", b"/v2/models/NAME/stats",
    b"/v2/repository/index", b"/v2/repository/models/NAME/load", b"/v2/repository/models/NAME/unload",
    b"/v2/models/stats", b"/v2/health/ready", b"/v2", b"/metrics", b"/openapi.json", b"/status/status.js", b"/",
)  # fmt: skip
ODD_IN_PATHS = (
    b"%0A", b"%0a", b"%0D%0A", b"%00", b"%2F", b"%2f..", b"%25", b"%", b"%zz", b"%C3%A9", b"%FF", b"\xff", b"\xc3\xa9",
    b"/", b"//", b"/../", b"/./", b"\\", b";a", b"?", b"?a=%00", b"#", b"*", b"http://x", b"a" * 9000, b"%41" * 3000,
    b"/a" * 4000, b"a" * 70_000, b"\t", b" ", b"\x00",
)  # fmt: skip


class Mutator:
    """Wrong requests, the same for the same seed."""

    def __init__(self, right: Right, seed: int) -> None:
        self._right, self._random = right, random.Random(seed)  # noqa: S311  (not a secret)
        self._kinds: list[Callable[[], tuple[bytes, bytes, bytes]]] = [
            self._flipped, self._cut, self._grown, self._length, self._value, self._value, self._value, self._deep,
            self._noise, self._encoded, self._headers, self._target, self._target,
        ]  # fmt: skip

    def request(self) -> bytes:
        """One, whole, as it goes over the socket."""
        line, head, body = self._random.choice(self._kinds)()
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
        return b"%b HTTP/1.1\r\nHost: x\r\n%b%b%b" % (line, head, length, body)

    def requests(self) -> list[bytes]:
        """One, or some that are sent before the first is answered, right ones among them."""
        if self._random.random() < 0.9:
            return [self.request()]
        head, body = self._whole(self._right.json)
        right = b"%b HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b" % (self._line(), head, len(body), body)
        return [
            self.request() if self._random.random() < 0.3 else right for _ in range(self._random.choice((2, 8, 40)))
        ]

    def _whole(self, content: dict[str, Any]) -> tuple[bytes, bytes]:
        text = json.dumps(content).encode()
        return b"%b: %d\r\n" % (oip.HEADER_LENGTH.encode(), len(text)), text + self._right.tensors

    def _line(self) -> bytes:
        return f"POST /v2/models/{self._right.model}/infer".encode()

    def _flipped(self) -> tuple[bytes, bytes, bytes]:
        head, body = self._whole(self._right.json)
        changed = bytearray(body)
        for _ in range(self._random.choice((1, 2, 8, 64))):
            changed[self._random.randrange(min(len(changed), 400))] = self._random.randrange(256)
        return self._line(), head, bytes(changed)

    def _cut(self) -> tuple[bytes, bytes, bytes]:
        head, body = self._whole(self._right.json)
        return self._line(), head, body[: self._random.randrange(len(body))]

    def _grown(self) -> tuple[bytes, bytes, bytes]:
        head, body = self._whole(self._right.json)
        return self._line(), head, body + self._random.randbytes(self._random.choice((1, 7, 4096)))

    def _length(self) -> tuple[bytes, bytes, bytes]:
        _, body = self._whole(self._right.json)
        odd = (b"-1", b"0", b"1", b"%d" % len(body), b"%d" % (len(body) + 1), b"1e3", b"x", b"\xff", b"9" * 400, b"")
        return self._line(), b"%b: %b\r\n" % (oip.HEADER_LENGTH.encode(), self._random.choice(odd)), body

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
        return self._line(), *self._whole(content)

    def _change(self, place: Any, key: Any) -> None:
        value = copy.deepcopy(self._random.choice(ODD))  # the next change may be of what is inside
        if isinstance(place, list):
            if key is None or self._random.random() < 0.3:
                place.append(value)
            elif self._random.random() < 0.5:
                place[key] = value
            else:
                place.extend(copy.deepcopy(place[key]) for _ in range(self._random.choice((1, 300))))
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
        return self._line(), b"", b'{"inputs":' + opened * depth + b"1" + closed * depth + b"}"

    def _noise(self) -> tuple[bytes, bytes, bytes]:
        return self._line(), b"", self._random.randbytes(self._random.randrange(400))

    def _encoded(self) -> tuple[bytes, bytes, bytes]:
        import zlib

        head, body = self._whole(self._right.json)
        packed = bytearray(zlib.compress(body, 1, wbits=self._random.choice((15, 31, -15))))
        if self._random.random() < 0.7:
            packed[self._random.randrange(len(packed))] ^= 1 << self._random.randrange(8)
        coding = self._random.choice((b"gzip", b"deflate", b"br", b"gzip, gzip", b"\xff"))
        return self._line(), head + b"Content-Encoding: %b\r\n" % coding, bytes(packed)

    def _headers(self) -> tuple[bytes, bytes, bytes]:
        head, body = self._whole(self._right.json)
        odd = (
            b"Accept-Encoding: " + b"gzip;q=x, " * 200 + b"\r\n", b"traceparent: 00-zz\r\n", b"Authorization: \xff\r\n",
            b"Content-Length: 3\r\n", b"Transfer-Encoding: gzip\r\n", b"X: " + b"a" * 40_000 + b"\r\n", b"\x00: 1\r\n",
            b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Upgrade: websocket\r\nConnection: upgrade\r\n",
        )  # fmt: skip
        return self._line(), head + self._random.choice(odd), body

    def _target(self) -> tuple[bytes, bytes, bytes]:
        """A path of the server's with something in it, more often than not at the end of one of its parts."""
        path = self._random.choice(PATHS).replace(b"NAME", self._right.model.encode())
        ends = [i for i in range(1, len(path) + 1) if path[i : i + 1] in (b"/", b"")]
        for _ in range(self._random.choice((1, 1, 2))):
            place = self._random.choice(ends) if self._random.random() < 0.7 else self._random.randrange(len(path) + 1)
            path = path[:place] + self._random.choice(ODD_IN_PATHS) + path[place:]
        verb = self._random.choice((b"POST", b"POST", b"GET", b"PUT", b"DELETE", b"OPTIONS"))
        return b"%b %b" % (verb, path), *self._whole(self._right.json)


class Sender:
    """One connection at a time; counts what becomes of requests."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 0)
        self._socket: socket.socket | None = None
        self._answers: BinaryIO
        self.statuses: Counter[str] = Counter()

    def send(self, *requests: bytes) -> None:
        """Send all before the first is answered, and read their answers.

        Where none comes soon, of a request that is not whole the server may wait for the rest: it is told that there is
        none, and must answer or close. A whole one must be answered, however late.
        """
        closes, whole = False, all(map(is_whole, requests))
        began = time.monotonic()
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._address, SECONDS)
                self._answers = self._socket.makefile("rb")
            self._socket.settimeout(SECONDS)
            self._socket.sendall(b"".join(requests))
            for request in requests:
                status, closes = self._answer(self._socket, whole)
                own = status == 504 and has_own_timeout(request, time.monotonic() - began)
                self.statuses[OWN_TIMEOUT if own else str(status)] += 1
                if closes:
                    break
        except (_NoMore, OSError, ValueError, IndexError) as error:
            end = next((name for kind, name in _ENDS if isinstance(error, kind)), NO_HTTP)
            sure = whole and len(requests) == 1 and len(requests[0]) <= SHORT
            self.statuses[LOST if end == HUNG_UP and sure else end] += 1
            closes = True
        if closes and self._socket is not None:
            self._answers.close()
            self._socket.close()
            self._socket = None

    def _answer(self, connection: socket.socket, whole: bool) -> tuple[int, bool]:
        """Status, and whether the connection can serve no further request."""
        closes = not self._begins(connection, whole)
        status = int(self._answers.readline().split(b" ", 2)[1])
        fields = {}
        while line := self._answers.readline().strip():
            name, _, value = line.partition(b":")
            fields[name.lower()] = value.strip()
        if status == 100:
            return self._answer(connection, whole)
        length = int(fields.get(b"content-length", b"0"))
        if len(self._answers.read(length)) < length:
            raise ConnectionResetError
        # What follows a refusal may be the rest of a body that was never read: a new connection begins clean.
        return status, closes or status != 200 or fields.get(b"connection") == b"close"

    def _begins(self, connection: socket.socket, whole: bool) -> bool:
        """Wait for the first byte of an answer; whether more may still be sent."""
        connection.settimeout(AT_ONCE_SECONDS)
        try:
            first, goes_on = self._answers.read(1), True
        except TimeoutError:
            connection.settimeout(SECONDS)
            self._answers = connection.makefile("rb")  # the old one refuses to read on
            goes_on = whole
            if not whole:
                connection.shutdown(socket.SHUT_WR)
            first = self._answers.read(1)
        connection.settimeout(SECONDS)
        if not first:
            raise ConnectionResetError if goes_on else _NoMore
        return goes_on


class _NoMore(Exception):
    """Of a request that its server waited for, and closed the connection as it was told that there is no more."""


_ENDS = ((_NoMore, WAITED), (TimeoutError, NO_ANSWER), (OSError, HUNG_UP))


def is_whole(request: bytes) -> bool:
    """Whether a request has all that its framing says."""
    head, _, body = request.partition(b"\r\n\r\n")
    framing = re.findall(rb"\r\n(Content-Length|Transfer-Encoding): ([^\r]*)", head)
    return framing in ([(b"Content-Length", b"%d" % len(body))], [(b"Transfer-Encoding", b"chunked")])


def has_own_timeout(request: bytes, seconds: float) -> bool:
    """Whether a request sets a timeout, in microseconds, that has passed after so many seconds."""
    return any(0 < int(each) <= seconds * 1e6 for each in re.findall(rb'"timeout": ?(\d{1,19})\b', request))
