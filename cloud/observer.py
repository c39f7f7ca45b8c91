"""What is told of a request that was served, whatever the protocol: counts, a line of the log, a span."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from edge_sdk.tracing import Attributes, Spans

from .answer import Failure
from .batcher import Ran
from .logs import LONGEST_ID
from .models import Model

__all__ = ["Asked", "Observer"]

_log = logging.getLogger("edgesdk.requests")


class Asked(NamedTuple):
    """What is known of a request before it is decoded.

    Attributes:
        began: when its body was there, by ``time.perf_counter_ns``.
        client: who asks, for people.
        headers: lower-case names; of them the trace's context is read, and ``X-Request-Id`` for a body without an id.
    """

    began: int
    client: str
    headers: Mapping[str, str]


class Observer:
    """Notes what became of requests. Names, sizes and times are told; of tensors' values, nothing."""

    def __init__(self) -> None:
        self._spans = Spans()
        self.wants_headers = self._spans.used or _log.isEnabledFor(logging.INFO)
        """Whether it looks at more of a request than when it began."""

    def succeeded(self, model: Model, asked: Asked, request_id: str, ran: Ran, *, decoded: int, ended: int) -> None:
        """A request is answered now.

        Args:
            model: that answered.
            asked: the request.
            request_id: the client's.
            ran: how it was run.
            decoded: when the request was decoded.
            ended: when its outputs were there; what comes after is encoding.
        """
        model.statistics.succeeded(ran, began=asked.began, decoded=decoded, ended=ended)
        if not self.wants_headers:
            return
        told = {"rows": ran.rows, "batch_rows": ran.batch, "queue_us": ran.queue_ns // 1000}
        self._tell(model, asked, request_id, {**told, "compute_us": ran.compute_ns // 1000}, 200)
        if self._spans.used:
            begin = _since_1970(asked.began)
            run = _since_1970(ended) - ran.compute_ns
            steps = {
                "": (begin, time.time_ns()),
                "decode": (begin, _since_1970(decoded)),
                "queue": (run - ran.queue_ns, run),
                "compute": (run, run + ran.compute_ns),
            }
            attributes: Attributes = {"rows": ran.rows, "batch_rows": ran.batch, "request_id": request_id[:LONGEST_ID]}
            self._spans.record(f"infer {model.name}", asked.headers, {**_names(model), **attributes}, steps)

    def failed(self, model: Model, asked: Asked, failure: Failure, request_id: str = "") -> None:
        """A request is refused now, or failed; status 499 is a client that left."""
        model.statistics.failed(failure.reason, time.perf_counter_ns() - asked.began)
        if not self.wants_headers:
            return
        self._tell(model, asked, request_id, {"error": failure.message}, failure.status)
        if self._spans.used:
            steps = {"": (_since_1970(asked.began), time.time_ns())}
            self._spans.record(f"infer {model.name}", asked.headers, _names(model), steps, error=failure.message)

    def _tell(self, model: Model, asked: Asked, request_id: str, told: Mapping[str, Any], status: int) -> None:
        if not _log.isEnabledFor(logging.INFO):
            return
        fields = {
            **_names(model),
            "status": status,
            "request_id": (request_id or asked.headers.get("x-request-id", ""))[:LONGEST_ID],
            "client": asked.client,
            "duration_us": (time.perf_counter_ns() - asked.began) // 1000,
            **told,
        }
        trace = asked.headers.get("traceparent", "").split("-")
        if len(trace) == 4:
            fields["trace_id"] = trace[1][:32]
        _log.info("infer", extra=fields)


def _names(model: Model) -> dict[str, str]:
    return {"model": model.name, "version": model.version}


def _since_1970(moment: int) -> int:
    """A moment of ``time.perf_counter_ns`` by ``time.time_ns``."""
    return moment + time.time_ns() - time.perf_counter_ns()
