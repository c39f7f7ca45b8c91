"""The inference call over HTTP: from a body to a reply, for whichever server has read the one and sends the other.

Errors besides those of ``answer``: 413 for too long a body, 415 for an encoding not spoken; 503 has Retry-After.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import msgspec
from starlette.types import Receive, Scope, Send

from edge_sdk import oip

from .answer import CLIENT_LEFT, DECODED_AT_ONCE, Clients, Failure, begin, complete, failure
from .batcher import Ran
from .compression import ENCODINGS, choose_encoding, compress, decompress
from .models import Model
from .observer import Asked, Observer
from .replies import error_body

__all__ = ["Call", "Headers", "InferHandler", "Reply"]

Headers = list[tuple[bytes, bytes]]
"""Names in lower case."""

LONGEST_RETRY = 60
"""Seconds that a refused client is asked to stay away at most."""

_HEADER_LENGTH = oip.HEADER_LENGTH.lower().encode()


class Call(msgspec.Struct):
    """A call whose headers are there.

    Attributes:
        model: that its path stands for.
        path: of the URL.
        headers: of it.
        client: host and port, where they are known.
        began: when the body was there, or before that, the headers; by ``time.perf_counter_ns``.
        running: what the model does of it, once it does.
        left: its client has.
    """

    model: Model
    path: bytes
    headers: Headers
    client: tuple[str, int] | None
    began: int
    running: asyncio.Future[Ran] | None = None
    left: bool = False

    def cancel(self) -> None:
        """Its client has left: it need not be run."""
        self.left = True
        if self.running is not None:
            self.running.cancel()


class Reply(NamedTuple):
    """What is sent back."""

    status: int
    headers: Headers
    content: bytes


class InferHandler:
    """Answers ``POST …/infer``.

    Args:
        max_body_bytes: longer request bodies are refused, before they are read where their length is stated.
        find: the model that a path stands for now.

    Attributes:
        clients: that have asked of late; to be shared with whoever else serves the same models.
    """

    def __init__(self, max_body_bytes: int, find: Callable[[bytes], Model | None]) -> None:
        self.max_body_bytes, self.find = max_body_bytes, find
        self.clients, self._observer = Clients(), Observer()

    def answer(self, call: Call, body: bytes, done: Callable[[Reply], None]) -> None:
        """Answer a call whose body is there.

        Args:
            call: the rest of it.
            body: as it was sent.
            done: is given the reply: at once, or later by the event loop.
        """
        call.began = time.perf_counter_ns()
        headers = dict(call.headers)
        if b"content-encoding" not in headers and not _has_long_json(headers, body):
            self._answer(call, headers, body, done)
            return
        # A few bytes may take long to unpack, and numbers in JSON to decode: not on the loop that everybody waits for.
        reading = asyncio.get_running_loop().run_in_executor(None, self._read, call, headers, body)
        reading.add_done_callback(lambda read: self._answer_read(call, read, done))

    def _answer(self, call: Call, headers: dict[bytes, bytes], body: bytes, done: Callable[[Reply], None]) -> None:
        call.model = self.find(call.path) or call.model  # a newer version may have come while the body did
        try:
            request = _decoded(headers, body, call.model)
        except Exception as error:  # the client gets one line, whatever it was
            done(self._failed(call, error))
        else:
            self._begin(call, request, done)

    def _read(self, call: Call, headers: dict[bytes, bytes], body: bytes) -> oip.InferRequest:
        """In a thread: unpacked and decoded."""
        whole = self._decompressed(headers, body)
        return _decoded(headers, whole, self.find(call.path) or call.model)

    def _answer_read(
        self, call: Call, reading: asyncio.Future[oip.InferRequest], done: Callable[[Reply], None]
    ) -> None:
        call.model = self.find(call.path) or call.model  # as above
        problem = reading.exception()
        if call.left:
            self._forget(call, done)
        elif isinstance(problem, Exception):
            done(self._failed(call, problem))
        else:
            self._begin(call, reading.result(), done)

    def _begin(self, call: Call, request: oip.InferRequest, done: Callable[[Reply], None]) -> None:
        decoded = time.perf_counter_ns()
        try:
            running = begin(call.model, request, alone=self.clients.alone(call.client))
        except Exception as error:
            done(self._failed(call, error, request.id))
            return
        if running.done():
            self._finish(call, request, decoded, done, running)
        else:
            call.running = running
            running.add_done_callback(partial(self._finish, call, request, decoded, done))

    def gone(self, call: Call) -> None:
        """Note that a client left before its answer was there."""
        self._observer.failed(call.model, self._asked(call), CLIENT_LEFT)

    async def __call__(self, model: Model, path: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Read one request of an ASGI server, and answer it."""
        call = Call(model, path, scope["headers"], scope["client"], time.perf_counter_ns())
        try:
            body = await self._body(dict(call.headers), receive)
        except _Refusal as error:
            reply = self._failed(call, error)
        else:
            if body is None:
                self.gone(call)
                return
            replied: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
            self.answer(call, body, replied.set_result)
            reply = await asyncio.shield(replied)
        await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
        await send({"type": "http.response.body", "body": reply.content})

    def _finish(
        self,
        call: Call,
        request: oip.InferRequest,
        decoded: int,
        done: Callable[[Reply], None],
        running: asyncio.Future[Ran],
    ) -> None:
        model = call.model
        if running.cancelled():
            self._forget(call, done)
            return
        try:
            ran = running.result()
            outputs, parameters = complete(model, request, ran)
            ended = time.perf_counter_ns()
            found, chunks = oip.encode_response(
                model.name, model.version, outputs, request=request, parameters=parameters
            )
            self._observer.succeeded(model, self._asked(call), request.id, ran, decoded=decoded, ended=ended)
            reply = self._reply(call, 200, found, b"".join(chunks))
        except Exception as error:
            reply = self._failed(call, error, request.id)
        done(reply)

    def _forget(self, call: Call, done: Callable[[Reply], None]) -> None:
        self.gone(call)
        done(Reply(CLIENT_LEFT.status, [], b""))  # which nobody reads

    def _failed(self, call: Call, error: Exception, request_id: str = "") -> Reply:
        model = call.model
        failed = error.failure if isinstance(error, _Refusal) else failure(error, model.name)
        self._observer.failed(model, self._asked(call), failed, request_id)
        found = {"Content-Type": "application/json"}
        if failed.status == 503:
            found["Retry-After"] = str(max(math.ceil(min(model.wait_seconds, LONGEST_RETRY)), 1))
        return self._reply(call, failed.status, found, error_body(failed.message))

    def _reply(self, call: Call, status: int, found: dict[str, str], content: bytes) -> Reply:
        headers = [(name.lower().encode(), value.encode()) for name, value in found.items()]
        for name, accepted in call.headers:
            if name == b"accept-encoding" and (encoding := choose_encoding(accepted.decode("latin-1"), len(content))):
                content = compress(content, encoding)
                headers.append((b"content-encoding", encoding.encode()))
                break
        headers.append((b"content-length", b"%d" % len(content)))
        return Reply(status, headers, content)

    def _asked(self, call: Call) -> Asked:
        if not self._observer.wants_headers:
            return Asked(call.began, "", {})
        told = {name.decode("latin-1"): value.decode("latin-1") for name, value in call.headers}
        return Asked(call.began, f"{call.client[0]}:{call.client[1]}" if call.client else "", told)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """None from a client that left."""
        _check_encoding(headers)
        stated = headers.get(b"content-length", b"0")
        if stated.isdigit() and int(stated[:20]) > self.max_body_bytes:
            raise self._too_long()
        chunks, length, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            length += len(chunk)
            if length > self.max_body_bytes:
                raise self._too_long()
            chunks.append(chunk)
            more = message.get("more_body", False)
        return b"".join(chunks)

    def _decompressed(self, headers: dict[bytes, bytes], body: bytes) -> bytes:
        encoding = _check_encoding(headers)
        whole = body if encoding == "identity" else decompress(body, encoding, self.max_body_bytes)
        if whole is None:
            raise self._too_long()
        return whole

    def _too_long(self) -> _Refusal:
        return _Refusal(413, f"the body is longer than {self.max_body_bytes} bytes")


def _has_long_json(headers: dict[bytes, bytes], body: bytes) -> bool:
    """Whether a body has so much JSON that it is worth a thread; a length that is none is refused at once."""
    if len(body) <= DECODED_AT_ONCE:
        return False
    length = headers.get(_HEADER_LENGTH)
    return length is None or (length.isdigit() and len(length) <= 20 and int(length) > DECODED_AT_ONCE)


def _decoded(headers: dict[bytes, bytes], body: bytes, model: Model) -> oip.InferRequest:
    length = headers.get(_HEADER_LENGTH)
    if length == b"0":
        return oip.decode_raw_request(body, model.inputs)
    return oip.decode_request(body, None if length is None else length.decode("latin-1"))


def _check_encoding(headers: dict[bytes, bytes]) -> str:
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").lower()
    if encoding not in ("identity", *ENCODINGS):
        known = ", ".join(ENCODINGS)
        raise _Refusal(415, f"content-encoding {encoding[:40]!r} is not spoken here; {known} and none at all are")
    return encoding


class _Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(status, "INVALID_ARGUMENT", "OTHER", message)
