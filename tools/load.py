"""Requests to a server, as each is answered or at a rate, whose every answer is compared with its own request's."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

from edge_sdk import oip
from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend
from edge_sdk.bundle import open_party
from edge_sdk.client import Client

KINDS = 64
TOLERANCE = 1e-3

NOT_TAKEN = 0
"""In place of a status: the server refused the connection, or ended it with the request unread."""
NO_ANSWER = -1
"""In place of a status: the server read the request, and then ended the connection or sent what is no answer."""


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
        """Whether an answer is this request's.

        Raises:
            TensorError: it is none.
            KeyError: it lacks the output.
        """
        answer = oip.decode_response(body, length)
        found, expected = answer.outputs[self._output], self.answers[kind : kind + 1]
        return (
            answer.id == request_id
            and found.shape == expected.shape
            and bool(np.abs(found - expected).max() <= TOLERANCE)
        )

    def ask(self, client: Client, kind: int, rows: int = 1) -> bool:
        """So many from this one on in one request, by our own client: whether the answer is right."""
        outputs, _ = client.infer(self.model, {self._input: self.feeds[kind : kind + rows]})
        return bool(np.abs(outputs[self._output] - self.answers[kind : kind + rows]).max() <= TOLERANCE)


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Outcome(NamedTuple):
    """Of one request: status, or one of the two in its place; milliseconds; and whether the answer was its own.

    Right is also a refusal with 503 that says when to come again.
    """

    request_id: str
    status: int
    ms: float
    right: bool


def _fields(head: str) -> dict[str, str]:
    """An answer's headers, names in lower case."""
    return {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head.split("\r\n"))}


def _had_read(connection: Connection | None) -> bool:
    """Whether a server that closed a connection in order, which is local, had read all that was sent on it.

    To what comes after that, and to what was not read, its system answers with a reset: the socket's error.
    """
    if connection is None:
        return False
    local: socket.socket = connection[1].get_extra_info("socket")
    return local.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


class Load:
    """Connections to a server, and what came back."""

    def __init__(self, url: str, questions: Questions, connections: int) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._questions = questions
        self._free: asyncio.Queue[Connection | None] = asyncio.Queue()
        for _ in range(connections):
            self._free.put_nowait(None)
        self.outcomes: list[Outcome] = []
        self.late = 0
        """Requests that were not sent, because all connections waited."""
        self._sent = 0

    async def _one(self, connection: Connection | None) -> None:
        """Send one request on a connection, new for None; note what becomes of it."""
        self._sent += 1
        kind, request_id = self._sent % KINDS, str(self._sent)
        began = time.perf_counter()
        status, right, goes_on = NOT_TAKEN, False, False
        try:
            if connection is None:
                connection = await asyncio.open_connection(self._host, self._port)
            reader, writer = connection
            writer.write(self._questions.request(kind, request_id))
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status, fields = NO_ANSWER, _fields(head)
            status = int(head.split(" ", 2)[1])
            body = await reader.readexactly(int(fields["content-length"]))
            right = status == 503 and "retry-after" in fields
            if status == 200:
                right = self._questions.is_right(kind, request_id, fields.get(oip.HEADER_LENGTH.lower()), body)
            goes_on = fields.get("connection", "").lower() != "close"
        except asyncio.IncompleteReadError as error:
            if status == NOT_TAKEN and (error.partial or _had_read(connection)):
                status = NO_ANSWER
        except OSError:  # of a connection that ended so: what the server had not read
            pass
        except Exception:  # what cannot be read, for whatever reason, is a wrong answer
            status = NO_ANSWER if status == NOT_TAKEN else status
        self.outcomes.append(Outcome(request_id, status, (time.perf_counter() - began) * 1e3, right))
        if connection is not None and not (goes_on and right):
            connection[1].close()
            connection = None
        self._free.put_nowait(connection)

    async def closed(self, seconds: float, clients: int) -> float:
        """Answers a second where each of some clients waits for its answer."""
        end = time.perf_counter() + seconds

        async def client() -> None:
            while time.perf_counter() < end:
                await self._one(await self._free.get())

        before, began = len(self.outcomes), time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return (len(self.outcomes) - before) / (time.perf_counter() - began)

    async def opened(self, seconds: float, rate: float) -> None:
        """Requests at a rate, whatever comes back; one for which no connection is free is not sent."""
        begin, count, tasks = time.perf_counter(), 0, set()
        while (now := time.perf_counter() - begin) < seconds:
            while count < now * rate:
                count += 1
                if self._free.empty():
                    self.late += 1
                    continue
                task = asyncio.create_task(self._one(self._free.get_nowait()))
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
