"""The inference call, as an ASGI handler of its own: a router and request objects cost more than a small model's run.

It reads the body, decodes it, has the model run it, and answers in the shape and with the errors of the Open Inference
Protocol: 400 for what the client sent, 413 for too long a body, 415 for an encoding that is not spoken, 500 for a model
that failed, 503 where too many requests wait (with Retry-After), 504 for a deadline that passed.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from starlette.types import Receive, Scope, Send

from edge_sdk import oip
from edge_sdk.errors import BackendError, ExpiredError, OverloadError, TensorError

from .answers import error_body
from .compression import ENCODINGS, choose_encoding, compress, decompress
from .models import Model
from .statistics import FailureReason

__all__ = ["InferHandler"]

ALONE_SECONDS = 1.0
"""After which a connection that nobody else has asked beside counts as the only one."""

LONGEST_RETRY = 60
"""Seconds that a refused client is asked to stay away at most."""

_HEADER_LENGTH = oip.HEADER_LENGTH.lower().encode()
_log = logging.getLogger("edgesdk.cloud")


class InferHandler:
    """Answers ``POST …/infer``.

    Args:
        max_body_bytes: longer request bodies are refused, before they are read where their length is stated.
    """

    def __init__(self, max_body_bytes: int) -> None:
        self.max_body_bytes = max_body_bytes
        self._clients = Clients()

    async def __call__(self, model: Model, scope: Scope, receive: Receive, send: Send) -> None:
        """Read one request, and answer it."""
        headers = dict(scope["headers"])
        began = time.perf_counter_ns()
        try:
            body = await self._body(headers, receive)
            began = time.perf_counter_ns()
            found, chunks = await self._run(model, headers, body, scope["client"], began)
        except _Gone:
            model.statistics.failed("CANCELED", time.perf_counter_ns() - began)
            return
        except Exception as error:  # the client gets one line, whatever it was
            status, reason, more = self._status(model, error)
            model.statistics.failed(reason, time.perf_counter_ns() - began)
            message = str(error)
            if status == 500:
                _log.error("model %s failed", model.name, exc_info=error)
                message = f"model {model.name!r} failed; the server's log says how"
            found, chunks, status = {"Content-Type": "application/json", **more}, [error_body(message)], status
        else:
            status = 200
        content = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        accepted = headers.get(b"accept-encoding")
        if accepted and (encoding := choose_encoding(accepted.decode("latin-1"), len(content))):
            content, found["Content-Encoding"] = compress(content, encoding), encoding
        listed = [(name.lower().encode(), value.encode()) for name, value in found.items()]
        listed.append((b"content-length", b"%d" % len(content)))
        await send({"type": "http.response.start", "status": status, "headers": listed})
        await send({"type": "http.response.body", "body": content})

    async def _run(
        self, model: Model, headers: dict[bytes, bytes], body: bytes, client: Any, began: int
    ) -> tuple[dict[str, str], list[bytes]]:
        length = headers.get(_HEADER_LENGTH)
        request = oip.decode_request(body, None if length is None else length.decode("latin-1"))
        wanted = _wanted(model, request)
        _check_bundle(model, request)
        deadline = _deadline(request)
        decoded = time.perf_counter_ns()
        ran = await model.infer(request.inputs, deadline=deadline, alone=self._clients.alone(client))
        ended = time.perf_counter_ns()
        parameters: oip.Parameters = {"queue_us": ran.queue_ns // 1000, "compute_us": ran.compute_ns // 1000}
        outputs = {name: ran.outputs[name] for name in wanted}
        answer = oip.encode_response(model.name, model.version, outputs, request=request, parameters=parameters)
        done = time.perf_counter_ns()
        model.statistics.succeeded(
            ran.rows,
            request_ns=done - began,
            queue_ns=ran.queue_ns,
            input_ns=decoded - began,
            infer_ns=ran.compute_ns,
            output_ns=done - ended,
        )
        return answer

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

    def _status(self, model: Model, error: Exception) -> tuple[int, FailureReason, dict[str, str]]:
        """HTTP status, Triton's reason, and further headers."""
        if isinstance(error, _Refusal):
            return error.status, "OTHER", {}
        if isinstance(error, TensorError):
            return 400, "OTHER", {}
        if isinstance(error, OverloadError):
            wait = min(max(math.ceil(min(model.wait_seconds, LONGEST_RETRY)), 1), LONGEST_RETRY)
            return 503, "REJECTED", {"Retry-After": str(wait)}
        if isinstance(error, ExpiredError):
            return 504, "REJECTED", {}
        return 500, "BACKEND" if isinstance(error, BackendError) else "OTHER", {}


class _Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Gone(Exception):
    """The client left before its body was there."""


class Clients:
    """Whether one connection alone has asked for inference of late."""

    def __init__(self) -> None:
        self._last: object = None
        self._since = 0.0

    def alone(self, client: object) -> bool:
        """Note a request of a client, host and port; None is a client that cannot be told from others."""
        now = time.monotonic()
        if client is None or client != self._last:
            self._last, self._since = client, now
        return now - self._since >= ALONE_SECONDS


def _wanted(model: Model, request: oip.InferRequest) -> list[str]:
    known = [spec.name for spec in model.outputs]
    if request.outputs is None:
        return known
    wanted = [output.name for output in request.outputs]
    if not wanted or not set(wanted) <= set(known) or len(set(wanted)) < len(wanted):
        raise TensorError(f"outputs {wanted} were asked for; each may be asked for once, and there are {known}")
    return wanted


def _check_bundle(model: Model, request: oip.InferRequest) -> None:
    """A client that names its bundle gets no answer from another one, deployed here since it connected."""
    named = request.parameters.get("edgesdk_bundle_id")
    served = model.properties.get("edgesdk_bundle_id")
    if named is not None and named != served:
        raise TensorError(f"this server holds bundle {str(served)[:12]}, the request is for {str(named)[:12]}")


def _deadline(request: oip.InferRequest) -> float | None:
    """Of the client, by ``time.monotonic``: Triton's request parameter ``timeout``, microseconds; 0 sets none."""
    timeout = request.parameters.get("timeout")
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 0:
        raise TensorError(f"parameter timeout is {timeout!r}; expected microseconds, an integer from 0")
    return time.monotonic() + timeout / 1e6 if timeout else None
