"""OpenTelemetry spans in the trace that a request's W3C `traceparent` names; off, and not even imported, by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from baton_serving.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

Attributes = Mapping[str, str | int | float | bool]

DEFAULT_ENDPOINT = "localhost:4317"
_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Stage:
    """A part of a request's life. Times are unix seconds."""

    name: str
    start: float
    end: float


class Tracing:
    """Sends spans to an OTLP collector, in batches, from a thread of its own."""

    def __init__(self, service: str, endpoint: str = DEFAULT_ENDPOINT) -> None:
        """`endpoint` is `host:port` (gRPC) or `http(s)://host:port` (HTTP). ConfigError without OpenTelemetry."""
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError(
                "--enable-trace needs OpenTelemetry: install baton with the extra 'trace', or leave the flag out"
            ) from error
        self._provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_exporter(endpoint)))
        self._tracer: Tracer = self._provider.get_tracer("baton")

    def begin(self, name: str, traceparent: str, kind: str, start: float) -> Span:
        """An open span below the caller's, or a trace of its own. `kind` is "server" or "internal"."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
        return self._tracer.start_span(name, context, SpanKind[kind.upper()], start_time=int(start * _NANOSECONDS))

    def end(
        self, span: Span, at: float, attributes: Attributes, error: str = "", stages: tuple[Stage, ...] = ()
    ) -> None:
        """Close the span, with a span below it for each of the stages."""
        from opentelemetry.trace import StatusCode, set_span_in_context

        context = set_span_in_context(span)
        for stage in stages:
            below = self._tracer.start_span(stage.name, context, start_time=int(stage.start * _NANOSECONDS))
            below.end(int(stage.end * _NANOSECONDS))
        span.set_attributes(dict(attributes))
        if error:
            span.set_status(StatusCode.ERROR, error)
        span.end(int(at * _NANOSECONDS))

    def flush(self) -> None:
        """Send what has not been sent; waits for the collector, for a few seconds at most."""
        self._provider.force_flush(5_000)

    def close(self) -> None:
        self._provider.shutdown()


def traceparent_of(span: Span) -> str:
    """What whoever works for the span is told."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def _exporter(endpoint: str) -> SpanExporter:
    if endpoint.startswith(("http://", "https://")):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        return HttpExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

    return GrpcExporter(endpoint=endpoint, insecure=True)
