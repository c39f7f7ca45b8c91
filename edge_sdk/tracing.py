"""OpenTelemetry's spans, where the process uses it already; nothing, for next to nothing, where it does not.

A process uses it once it has set a tracer provider: an application that traces itself, one started by
``opentelemetry-instrument``, or a command with ``--otlp-endpoint``. The context travels as W3C's ``traceparent``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from .errors import ConfigError, needs_extra, words_of

__all__ = ["TRACE_HEADERS", "Attributes", "Spans", "exporting"]

TRACE_HEADERS = ("traceparent", "tracestate")
"""W3C Trace Context, sections 3.2 and 3.3."""

_UNTOLD = {"record_exception": False, "set_status_on_exception": False}
"""What OpenTelemetry does with an error by itself: the whole of it goes into the span."""

Attributes = Mapping[str, str | int | float | bool]
"""Of a span."""


class Spans:
    """Makes the spans of this package, if the process has a tracer provider by now: all are named by what runs."""

    def __init__(self) -> None:
        trace: Any = sys.modules.get("opentelemetry.trace")
        idle = () if trace is None else (trace.ProxyTracerProvider, trace.NoOpTracerProvider)
        self._trace: Any = None if trace is None or isinstance(trace.get_tracer_provider(), idle) else trace
        self._tracer = self._trace.get_tracer("edgesdk") if self._trace else None

    @property
    def used(self) -> bool:
        """Whether the process traces."""
        return self._tracer is not None

    def span(self, name: str, attributes: Attributes | None = None) -> AbstractContextManager[Any]:
        """A span around the body of a ``with``, below the current one."""
        if self._tracer is None:
            return nullcontext()
        return self._told(self._tracer.start_as_current_span(name, attributes=attributes, **_UNTOLD))

    @contextmanager
    def _told(self, started: AbstractContextManager[Any]) -> Iterator[Any]:
        """A span whose error is told in words: its numbers may be a tensor's values."""
        with started as span:
            try:
                yield span
            except BaseException as error:
                span.set_status(self._trace.StatusCode.ERROR, f"{type(error).__name__}: {words_of(str(error))}")
                raise

    def current(self) -> Any:
        """The current span, to go on with in another thread."""
        return self._trace.get_current_span() if self._trace else None

    @contextmanager
    def request(self, name: str, parent: Any, attributes: Attributes, *, apart: bool) -> Iterator[None]:
        """A span around a call of a server.

        Args:
            name: of the span.
            parent: as ``current`` gave it.
            attributes: of the span.
            apart: begin a trace of its own that links to the parent on this side only. Servers that hold shares of one
                image could otherwise tell by the trace that the shares belong together.
        """
        if self._tracer is None:
            yield
            return
        trace, kind = self._trace, self._trace.SpanKind.CLIENT
        from opentelemetry import context

        if apart:
            links = [trace.Link(parent.get_span_context())]
            # Not the caller's context with another span: its baggage would go to every server.
            token = context.attach(context.Context())
            started = self._tracer.start_span(name, None, kind, attributes, links)
        else:
            token = context.attach(trace.set_span_in_context(parent))
            started = self._tracer.start_span(name, None, kind, attributes)
        try:
            with self._told(trace.use_span(started, end_on_exit=True, **_UNTOLD)):
                yield
        finally:
            context.detach(token)

    def headers(self) -> dict[str, str]:
        """By which the current span is known to a server."""
        if self._tracer is None:
            return {}
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        return carrier

    def record(
        self,
        name: str,
        carrier: Mapping[str, str],
        attributes: Attributes,
        steps: Mapping[str, tuple[int, int]],
        *,
        error: str | None = None,
    ) -> None:
        """A server's span that has ended, below its client's.

        Args:
            name: of the span.
            carrier: the client's headers, by lower-case names.
            attributes: of the span.
            steps: begin and end in nanoseconds since 1970: of the whole under an empty name, of its parts under theirs.
            error: what went wrong.
        """
        if self._tracer is None:
            return
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        trace = self._trace
        began, ended = steps[""]
        context = TraceContextTextMapPropagator().extract(carrier)
        whole = self._tracer.start_span(name, context, trace.SpanKind.SERVER, attributes, start_time=began)
        inside = trace.set_span_in_context(whole, context)
        for step, (start, end) in steps.items():
            if step:
                self._tracer.start_span(step, inside, start_time=start).end(end)
        if error is not None:
            whole.set_status(trace.StatusCode.ERROR, error)
        whole.end(ended)


@contextmanager
def exporting(endpoint: str | None, service: str) -> Iterator[None]:
    """Send this process's spans to a collector while the body of a ``with`` runs, and what is left at its end.

    Args:
        endpoint: of OTLP over HTTP, such as ``http://127.0.0.1:4318``; None sends nothing.
        service: the process's name there.

    Raises:
        MissingExtra: OpenTelemetry's SDK or exporter is not installed.
        ConfigError: the endpoint is not an address of HTTP.
    """
    if endpoint is None:
        yield
        return
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"{endpoint!r} is no OTLP endpoint; expected http://HOST:4318")
    shut_down = _export(endpoint, service)
    try:
        yield
    finally:
        shut_down()


def _export(endpoint: str, service: str) -> Callable[[], None]:
    with needs_extra("trace", "--otlp-endpoint"):
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider.shutdown
