"""What a server and its models have done so far: counts and durations, cheap to note, for whoever asks."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from .batcher import Ran
from .tally import Tally

__all__ = ["REQUEST_SECONDS", "AllStatistics", "FailureReason", "ModelStatistics"]

K = TypeVar("K")
T = TypeVar("T")

FailureReason = Literal["REJECTED", "CANCELED", "BACKEND", "OTHER"]
"""Triton's: refused by a full queue or a deadline; the client went; the library failed; all else."""

REQUEST_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histogram of request durations."""


class ModelStatistics(msgspec.Struct):
    """Of one model since it was loaded; written and read on the event loop alone.

    Attributes:
        success, queue, compute_input, compute_infer, compute_output: of requests, as the statistics extension has them.
        failures: of requests, by reason.
        executions: of batches, by rows.
        inference_count: rows that were answered.
        last_inference_ms: since 1970.
        durations: successful requests by duration: at most each of ``REQUEST_SECONDS``, and above the last.
        waiting: requests that wait, when it was last looked at.
    """

    success: Tally = msgspec.field(default_factory=Tally)
    queue: Tally = msgspec.field(default_factory=Tally)
    compute_input: Tally = msgspec.field(default_factory=Tally)
    compute_infer: Tally = msgspec.field(default_factory=Tally)
    compute_output: Tally = msgspec.field(default_factory=Tally)
    failures: dict[FailureReason, Tally] = {}
    executions: dict[int, Tally] = {}
    inference_count: int = 0
    last_inference_ms: int = 0
    durations: list[int] = msgspec.field(default_factory=lambda: [0] * (len(REQUEST_SECONDS) + 1))
    waiting: int = 0

    @property
    def execution_count(self) -> int:
        """Batches that ran."""
        return sum(tally.count for tally in self.executions.values())

    def __add__(self, other: ModelStatistics) -> ModelStatistics:
        return ModelStatistics(
            success=self.success + other.success,
            queue=self.queue + other.queue,
            compute_input=self.compute_input + other.compute_input,
            compute_infer=self.compute_infer + other.compute_infer,
            compute_output=self.compute_output + other.compute_output,
            failures=_added(self.failures, other.failures),
            executions=_added(self.executions, other.executions),
            inference_count=self.inference_count + other.inference_count,
            last_inference_ms=max(self.last_inference_ms, other.last_inference_ms),
            durations=[a + b for a, b in zip(self.durations, other.durations, strict=True)],
            waiting=self.waiting + other.waiting,
        )

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

    def as_json(self, name: str, version: str) -> dict[str, Any]:
        """The model's entry of ``model_stats`` of the protocol's statistics extension, as Triton states it."""
        unused = Tally()
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_inference_ms,
            "inference_count": self.inference_count,
            "execution_count": self.execution_count,
            "inference_stats": {
                "success": self.success.as_json(),
                "fail": sum(self.failures.values(), unused).as_json(),
                "queue": self.queue.as_json(),
                "compute_input": self.compute_input.as_json(),
                "compute_infer": self.compute_infer.as_json(),
                "compute_output": self.compute_output.as_json(),
                "cache_hit": unused.as_json(),
                "cache_miss": unused.as_json(),
            },
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": unused.as_json(),
                    "compute_infer": tally.as_json(),
                    "compute_output": unused.as_json(),
                }
                for rows, tally in sorted(self.executions.items())
            ],
        }


class AllStatistics(NamedTuple):
    """Of a server, or one of its processes.

    Attributes:
        models: by name and version.
        refused: requests that were not let in, by status of HTTP.
    """

    models: dict[tuple[str, str], ModelStatistics]
    refused: dict[int, int]

    def joined(self, others: AllStatistics) -> AllStatistics:
        """Of both."""
        return AllStatistics(_added(self.models, others.models), _added(self.refused, others.refused))


def _added(some: Mapping[K, T], others: Mapping[K, T]) -> dict[K, T]:
    both = {key: found + others[key] for key, found in some.items() if key in others}  # type: ignore[operator]
    return {**some, **others, **both}
