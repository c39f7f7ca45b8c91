"""What a served model has done so far: counts and durations, cheap to note, for whoever asks."""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import Any, Literal

from .batcher import Ran

__all__ = ["REQUEST_SECONDS", "FailureReason", "ModelStatistics", "Tally"]

FailureReason = Literal["REJECTED", "CANCELED", "BACKEND", "OTHER"]
"""Triton's: refused by a full queue or a deadline; the client went; the library failed; all else."""

REQUEST_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histogram of request durations."""


class Tally:
    """How often something happened, and nanoseconds that it took in all."""

    __slots__ = ("count", "ns")

    def __init__(self) -> None:
        self.count = self.ns = 0

    def add(self, ns: int) -> None:
        """It happened once more."""
        self.count += 1
        self.ns += ns

    def as_json(self) -> dict[str, int]:
        """As the statistics extension has it."""
        return {"count": self.count, "ns": self.ns}


class ModelStatistics:
    """Of one model since it was loaded; written and read on the event loop alone."""

    def __init__(self) -> None:
        self.success, self.queue = Tally(), Tally()
        self.compute_input, self.compute_infer, self.compute_output = Tally(), Tally(), Tally()
        self.failures: dict[FailureReason, Tally] = {}
        self.inference_count = 0
        self.last_inference_ms = 0
        self.durations = [0] * (len(REQUEST_SECONDS) + 1)
        """Successful requests by duration: at most each bound, and above the last."""

    def succeeded(self, ran: Ran, *, began: int, decoded: int, ended: int) -> None:
        """Note a request that is answered now.

        Args:
            ran: how it was run.
            began: when its body was there, by ``time.perf_counter_ns``.
            decoded: when it was decoded.
            ended: when its outputs were there; what comes after is encoding.
        """
        now = time.perf_counter_ns()
        request_ns = now - began
        self.success.add(request_ns)
        self.queue.add(ran.queue_ns)
        self.compute_input.add(decoded - began)
        self.compute_infer.add(ran.compute_ns)
        self.compute_output.add(now - ended)
        self.inference_count += ran.rows
        self.last_inference_ms = int(time.time() * 1000)
        self.durations[bisect_left(REQUEST_SECONDS, request_ns / 1e9)] += 1

    def failed(self, reason: FailureReason, request_ns: int) -> None:
        """Note a request that was not."""
        self.failures.setdefault(reason, Tally()).add(request_ns)

    def as_json(self, executions: dict[int, tuple[int, int]]) -> dict[str, Any]:
        """One entry of ``model_stats`` of the protocol's statistics extension, as Triton states it.

        Args:
            executions: by rows of a batch: how many ran, and nanoseconds they took.
        """
        fail, unused = Tally(), Tally().as_json()
        for tally in self.failures.values():
            fail.count += tally.count
            fail.ns += tally.ns
        return {
            "last_inference": self.last_inference_ms,
            "inference_count": self.inference_count,
            "inference_stats": {
                "success": self.success.as_json(),
                "fail": fail.as_json(),
                "queue": self.queue.as_json(),
                "compute_input": self.compute_input.as_json(),
                "compute_infer": self.compute_infer.as_json(),
                "compute_output": self.compute_output.as_json(),
                "cache_hit": unused,
                "cache_miss": unused,
            },
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": unused,
                    "compute_infer": {"count": count, "ns": ns},
                    "compute_output": unused,
                }
                for rows, (count, ns) in sorted(executions.items())
            ],
        }
