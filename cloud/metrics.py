"""What Prometheus scrapes: Triton's names where it has one, so that its dashboards work, and our histograms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from .statistics import REQUEST_SECONDS, AllStatistics, ModelStatistics

__all__ = ["CONTENT_TYPE", "exposition"]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
BATCH_ROWS = tuple(2**i for i in range(9))
LABELS = ("model", "version")


def exposition(statistics: AllStatistics) -> bytes:
    """The text format, version 0.0.4, of all counts of these models."""
    registry = CollectorRegistry()
    registry.register(_Models(statistics))
    return generate_latest(registry)


class _Models(Collector):
    def __init__(self, statistics: AllStatistics) -> None:
        self._models = [(dict(zip(LABELS, names, strict=True)), found) for names, found in statistics.models.items()]
        self._refused = statistics.refused

    def collect(self) -> Iterator[Metric]:
        for name, text, value in _COUNTERS:
            # "unknown", not "counter": the library would put _total behind Triton's names.
            counter = Metric(name, text, "unknown")
            for labels, found in self._models:
                counter.add_sample(name, labels, value(found))
            yield counter
        failed = Metric("nv_inference_request_failure", "Requests without an answer", "unknown")
        waiting = GaugeMetricFamily("nv_inference_pending_request_count", "Requests that wait", labels=LABELS)
        durations = HistogramMetricFamily("edgesdk_request_seconds", "From body read to answer made", labels=LABELS)
        batches = HistogramMetricFamily("edgesdk_batch_rows", "Rows of the batches that ran", labels=LABELS)
        for labels, found in self._models:
            for reason, tally in found.failures.items():
                failed.add_sample(failed.name, {**labels, "reason": reason}, tally.count)
            waiting.add_metric(list(labels.values()), found.waiting)
            bounds = [*map(str, REQUEST_SECONDS), "+Inf"]
            buckets = list(zip(bounds, accumulate(found.durations), strict=True))
            durations.add_metric(list(labels.values()), buckets, found.success.ns / 1e9)
            batches.add_metric(list(labels.values()), *_batch_rows(found))
        refused = CounterMetricFamily("edgesdk_refused", "Requests that were not let in", labels=["status"])
        for status, count in self._refused.items():
            refused.add_metric([str(status)], count)
        yield from (failed, waiting, durations, batches, refused)


_COUNTERS: tuple[tuple[str, str, Callable[[ModelStatistics], float]], ...] = (
    ("nv_inference_request_success", "Requests that were answered", lambda s: s.success.count),
    ("nv_inference_exec_count", "Batches that ran", lambda s: s.execution_count),
    ("nv_inference_count", "Rows of the requests that were answered", lambda s: s.inference_count),
    ("nv_inference_request_duration_us", "Microseconds from body read to answer made", lambda s: s.success.ns / 1e3),
    ("nv_inference_queue_duration_us", "Microseconds that requests waited", lambda s: s.queue.ns / 1e3),
    ("nv_inference_compute_input_duration_us", "Microseconds of decoding", lambda s: s.compute_input.ns / 1e3),
    ("nv_inference_compute_infer_duration_us", "Microseconds of running", lambda s: s.compute_infer.ns / 1e3),
    ("nv_inference_compute_output_duration_us", "Microseconds of encoding", lambda s: s.compute_output.ns / 1e3),
)


def _batch_rows(found: ModelStatistics) -> tuple[list[tuple[str, float]], float]:
    """Buckets of a histogram, and the sum of all rows."""
    counts = {rows: tally.count for rows, tally in found.executions.items()}
    up_to = [sum(count for rows, count in counts.items() if rows <= bound) for bound in BATCH_ROWS]
    buckets = [*zip(map(str, BATCH_ROWS), map(float, up_to), strict=True), ("+Inf", float(found.execution_count))]
    return buckets, float(sum(rows * count for rows, count in counts.items()))
