"""One span per request of a worker, with its stages below it."""

from __future__ import annotations

from collections.abc import Callable

from baton_serving.runtime.messages import Failure, Timings
from baton_serving.runtime.requests import RequestRecord
from baton_serving.tracing import Stage, Tracing


class RequestSpans:
    """Observer that traces. `role` tells the worker's leg: "prefill", "decode", or "null" for whole requests."""

    def __init__(self, tracing: Tracing, role: Callable[[], str]) -> None:
        self._tracing = tracing
        self._role = role

    def started(self, record: RequestRecord) -> None:
        """A span is made once, when all about it is known."""

    def produced(self, record: RequestRecord, index: int, tokens: int, now: float) -> None:
        """As above."""

    def failed(self, failure: Failure) -> None:
        """Open requests end with it, and say so."""

    def finished(self, record: RequestRecord) -> None:
        request = record.request
        role = self._role()
        name = "baton.worker" if role == "null" else f"baton.{role}"
        span = self._tracing.begin(name, request.trace, "server", request.received)
        attributes: dict[str, str | int | float | bool] = {
            "baton.rid": request.rid,
            "baton.route": request.route,
            "baton.outcome": record.outcome,
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.output_tokens": record.completion_tokens,
            "baton.cached_tokens": record.cached_prompt_tokens,
        }
        timings = record.timings
        if timings is not None and timings.transfer_bytes:
            attributes["baton.transfer_bytes"] = timings.transfer_bytes
        self._tracing.end(span, record.finished, attributes, record.message, stages_of(timings))


def stages_of(timings: Timings | None) -> tuple[Stage, ...]:
    """The stages that a request passed, from one time that is known to another."""
    if timings is None:
        return ()
    spans = (
        ("queue", timings.queued, timings.scheduled),
        ("prefill", timings.scheduled, timings.prefilled),
        ("transfer", timings.transfer_started, timings.transferred),
        ("decode", timings.first_token, timings.finished),
    )
    return tuple(Stage(name, start, end) for name, start, end in spans if 0 < start <= end)
