"""A decoded inference request to its outputs, and every way in which that may fail: the same for all protocols."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import NamedTuple

from edge_sdk.bundle import BUNDLE_KEY
from edge_sdk.errors import (
    BackendError,
    EdgeSDKError,
    ExpiredError,
    ForbiddenError,
    OverloadError,
    TensorError,
    UnknownModelError,
)
from edge_sdk.oip import InferRequest, Parameters
from edge_sdk.tensors import Array

from .batcher import Ran
from .logs import without_numbers
from .models import Model
from .replies import MAX_MESSAGE
from .statistics import FailureReason

__all__ = ["CLIENT_LEFT", "DECODED_AT_ONCE", "Answer", "Clients", "Failure", "begin", "complete", "failure", "refusal"]

ALONE_SECONDS = 1.0
"""After which a connection that nobody else has asked beside counts as the only one."""

DECODED_AT_ONCE = 64 * 1024
"""Bytes of JSON, or of gRPC's typed numbers, that are decoded on the event loop; more take a thread of their own."""

UNSERVED = {"classification", "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"}
"""Parameters of an output, of Triton's extensions, that would make it another than the tensor."""

_log = logging.getLogger("edgesdk.cloud")


class Answer(NamedTuple):
    """The outputs that were asked for, by name, and what the answer says besides."""

    outputs: dict[str, Array]
    parameters: Parameters


def begin(model: Model, request: InferRequest, *, alone: bool, time_left: float | None = None) -> asyncio.Future[Ran]:
    """Check a request, and have the model run it.

    Args:
        model: that it is for.
        request: decoded.
        alone: its client is the only one at this time.
        time_left: seconds that its client waits, where its protocol says.

    Raises:
        TensorError: the request does not fit the model.
        UnknownModelError, OverloadError: as the model says.

    Returns:
        What ``Model.submit`` does.
    """
    _check_outputs(model, request)
    _check_bundle(model, request)
    return model.submit(request.inputs, deadline=_deadline(request, time_left), alone=alone)


def complete(model: Model, request: InferRequest, ran: Ran) -> Answer:
    """The answer to a request that has run."""
    parameters: Parameters = {"queue_us": ran.queue_ns // 1000, "compute_us": ran.compute_ns // 1000}
    if request.outputs is None:
        return Answer(ran.outputs, parameters)
    return Answer({output.name: ran.outputs[output.name] for output in request.outputs}, parameters)


class Failure(NamedTuple):
    """What became of a request that failed: status of HTTP, code of gRPC, reason as Triton has it, message."""

    status: int
    code: str
    reason: FailureReason
    message: str


_FAILURES: tuple[tuple[type[Exception], int, str, FailureReason], ...] = (
    (TensorError, 400, "INVALID_ARGUMENT", "OTHER"),
    (UnknownModelError, 404, "NOT_FOUND", "OTHER"),
    (ForbiddenError, 403, "PERMISSION_DENIED", "OTHER"),
    (OverloadError, 503, "UNAVAILABLE", "REJECTED"),
    (ExpiredError, 504, "DEADLINE_EXCEEDED", "REJECTED"),
)


def failure(error: Exception, model: str) -> Failure:
    """How to answer an error. What is not the client's doing is logged, and not shown to it."""
    if known := _known(error):
        return known
    _log.error("model %s failed", model, exc_info=without_numbers(error))
    reason: FailureReason = "BACKEND" if isinstance(error, BackendError) else "OTHER"
    return Failure(500, "INTERNAL", reason, f"model {model!r} failed; the server's log says how")


def refusal(error: EdgeSDKError) -> Failure:
    """How to answer what an operator asked for and cannot have: unlike a client, they see why."""
    return _known(error) or Failure(400, "INVALID_ARGUMENT", "OTHER", str(error))


def _known(error: Exception) -> Failure | None:
    for kind, status, code, reason in _FAILURES:
        if isinstance(error, kind):
            return Failure(status, code, reason, str(error)[:MAX_MESSAGE])
    return None


CLIENT_LEFT = Failure(499, "CANCELLED", "CANCELED", "the client left")
"""499 is what logs of nginx and others call that."""


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


def _check_outputs(model: Model, request: InferRequest) -> None:
    if request.outputs is None:
        return
    known = [spec.name for spec in model.outputs]
    wanted = [output.name for output in request.outputs]
    if not wanted or not set(wanted) <= set(known) or len(set(wanted)) < len(wanted):
        raise TensorError(f"outputs {wanted} were asked for; each may be asked for once, and there are {known}")
    for output in request.outputs:
        if unserved := UNSERVED & set(output.parameters):
            raise TensorError(
                f"output {output.name!r}: {', '.join(sorted(unserved))} is not served here; ask for the tensor itself"
            )


def _check_bundle(model: Model, request: InferRequest) -> None:
    """A client that names its bundle gets no answer from another one, deployed here since it connected."""
    named = request.parameters.get(BUNDLE_KEY)
    served = model.properties.get(BUNDLE_KEY)
    if named is not None and named != served:
        raise TensorError(f"this server holds bundle {str(served)[:12]}, the request is for {str(named)[:12]}")


def _deadline(request: InferRequest, time_left: float | None) -> float | None:
    """By ``time.monotonic``: of the transport, or Triton's request parameter ``timeout``, microseconds; 0 sets none."""
    timeout = request.parameters.get("timeout", 0)
    if isinstance(timeout, bool) or not isinstance(timeout, int) or not 0 <= timeout < 2**63:
        raise TensorError(f"parameter timeout is {timeout!r}; expected microseconds, a 64-bit integer from 0")
    waits = [seconds for seconds in (timeout / 1e6 or None, time_left) if seconds is not None]
    return time.monotonic() + min(waits) if waits else None
