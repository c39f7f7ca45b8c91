"""The inference call over HTTP, as an ASGI handler of its own: a router's objects cost more than a small model's run.

Errors besides those of ``answer``: 413 for too long a body, 415 for an encoding not spoken; 503 has Retry-After.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from starlette.types import Receive, Scope, Send

from edge_sdk import oip

from .answer import Clients, Failure, answer, failure
from .compression import ENCODINGS, choose_encoding, compress, decompress
from .models import Model
from .observer import Asked, Observer
from .replies import error_body
from .statistics import FailureReason

__all__ = ["InferHandler"]

LONGEST_RETRY = 60
"""Seconds that a refused client is asked to stay away at most."""

_HEADER_LENGTH = oip.HEADER_LENGTH.lower().encode()


class InferHandler:
    """Answers ``POST …/infer``.

    Args:
        max_body_bytes: longer request bodies are refused, before they are read where their length is stated.
        find: the model that a path stands for now.
    """

    def __init__(self, max_body_bytes: int, find: Callable[[str], Model | None]) -> None:
        self.max_body_bytes, self._find = max_body_bytes, find
        self._clients, self._observer = Clients(), Observer()

    async def __call__(self, model: Model, scope: Scope, receive: Receive, send: Send) -> None:
        """Read one request, and answer it."""
        headers = dict(scope["headers"])
        began = time.perf_counter_ns()
        request: oip.InferRequest | None = None
        try:
            body = await self._body(headers, receive)
            model = self._find(scope["path"]) or model  # a newer version may have come while the body did
            began = time.perf_counter_ns()
            length = headers.get(_HEADER_LENGTH)
            request = oip.decode_request(body, None if length is None else length.decode("latin-1"))
            status, found, chunks = 200, *await self._run(model, request, scope, began)
        except Exception as error:  # the client gets one line, whatever it was
            failed = error.failure if isinstance(error, _Refusal) else failure(error, model.name)
            self._observer.failed(model, self._asked(scope, began), failed, request.id if request else "")
            if isinstance(error, _Gone):
                return
            status, found, chunks = failed.status, {}, [error_body(failed.message)]
            if status == 503:
                found["Retry-After"] = str(max(math.ceil(min(model.wait_seconds, LONGEST_RETRY)), 1))
        content = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        accepted = headers.get(b"accept-encoding")
        if accepted and (encoding := choose_encoding(accepted.decode("latin-1"), len(content))):
            content, found["Content-Encoding"] = compress(content, encoding), encoding
        found.setdefault("Content-Type", "application/json")
        listed = [(name.lower().encode(), value.encode()) for name, value in found.items()]
        listed.append((b"content-length", b"%d" % len(content)))
        await send({"type": "http.response.start", "status": status, "headers": listed})
        await send({"type": "http.response.body", "body": content})

    def _asked(self, scope: Scope, began: int) -> Asked:
        if not self._observer.wants_headers:
            return Asked(began, "", {})
        client = scope["client"]
        told = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        return Asked(began, f"{client[0]}:{client[1]}" if client else "", told)

    async def _run(
        self, model: Model, request: oip.InferRequest, scope: Scope, began: int
    ) -> tuple[dict[str, str], list[bytes]]:
        decoded = time.perf_counter_ns()
        outputs, parameters, ran = await answer(model, request, alone=self._clients.alone(scope["client"]))
        ended = time.perf_counter_ns()
        encoded = oip.encode_response(model.name, model.version, outputs, request=request, parameters=parameters)
        self._observer.succeeded(model, self._asked(scope, began), request.id, ran, decoded=decoded, ended=ended)
        return encoded

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").lower()
        if encoding not in ("identity", *ENCODINGS):
            known = ", ".join(ENCODINGS)
            raise _Refusal(415, f"content-encoding {encoding[:40]!r} is not spoken here; {known} and none at all are")
        too_long = f"the body is longer than {self.max_body_bytes} bytes"
        stated = headers.get(b"content-length", b"0")
        if stated.isdigit() and int(stated[:20]) > self.max_body_bytes:
            raise _Refusal(413, too_long)
        chunks, length, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            chunk = message.get("body", b"")
            length += len(chunk)
            if length > self.max_body_bytes:
                raise _Refusal(413, too_long)
            chunks.append(chunk)
            more = message.get("more_body", False)
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if encoding == "identity":
            return body
        whole = decompress(body, encoding, self.max_body_bytes)
        if whole is None:
            raise _Refusal(413, too_long)
        return whole


class _Refusal(Exception):
    def __init__(self, status: int, message: str, reason: FailureReason = "OTHER") -> None:
        super().__init__(message)
        self.failure = Failure(status, "INVALID_ARGUMENT", reason, message)


class _Gone(_Refusal):
    """The client left before its body was there; 499 is what logs of nginx and others call that."""

    def __init__(self) -> None:
        super().__init__(499, "the client left", "CANCELED")
