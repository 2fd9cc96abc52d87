"""One span per request of the gateway: workers' spans stand below it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from baton_serving.gateway.http.downstream import Incoming
from baton_serving.gateway.record import Record
from baton_serving.tracing import Tracing, traceparent_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_HEADER = b"traceparent"


class RequestSpans:
    """The open spans, by the `traceparent` that workers get."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._open: dict[str, Span] = {}

    def begin(self, incoming: Incoming) -> str:
        """Open a span below the client's, and put it into the request's header in its place."""
        given = incoming.headers.get(_HEADER, b"").decode("latin-1")
        span = self._tracing.begin("baton.gateway", given, "server", time.time())
        traceparent = traceparent_of(span)
        incoming.headers[_HEADER] = traceparent.encode()
        self._open[traceparent] = span
        return traceparent

    def end(self, record: Record) -> None:
        """The request is over."""
        span = self._open.pop(record.trace, None)
        if span is None:
            return
        attributes: dict[str, str | int | float | bool] = {
            "http.request.method": "POST",
            "url.path": record.path,
            "http.response.status_code": record.status,
            "gen_ai.request.model": record.model,
            "baton.request_id": record.request_id,
            "baton.outcome": record.outcome,
            "baton.attempts": len(record.attempts),
            "baton.migrations": record.moved,
        }
        if record.tenant:
            attributes["baton.tenant"] = record.tenant
        if record.attempts:
            attributes["baton.pair"] = str(record.attempts[-1][1].route)
        if record.first_byte:
            attributes["baton.first_byte_after"] = record.first_byte - record.started
        self._tracing.end(span, record.received + record.ended - record.started, attributes, record.error)

    def refused(self, traceparent: str, path: str) -> None:
        """The request was answered before it became one, unless `end` was told of it."""
        span = self._open.pop(traceparent, None)
        if span is not None:
            self._tracing.end(span, time.time(), {"url.path": path, "baton.outcome": "refused"})
