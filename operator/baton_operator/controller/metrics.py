"""The operator's own metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """Each with one sentence on what it says, from which `docs/metrics.md` is made."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.rounds = Counter(
            "baton_operator_rounds",
            "Rounds of planning and acting for one service, by outcome: done, or why not.",
            ["outcome"],
            registry=self.registry,
        )
        self.round_seconds = Histogram(
            "baton_operator_round_seconds", "Duration of a round in seconds.", registry=self.registry
        )
        self.calls = Counter(
            "baton_operator_api_calls",
            "Requests to the API server, watches aside, by verb and resource.",
            ["verb", "resource"],
            registry=self.registry,
        )
        self.services = Gauge(
            "baton_operator_services", "Services that the operator looks after.", registry=self.registry
        )
        self.waiting = Gauge("baton_operator_queue", "Services that wait for their next round.", registry=self.registry)
        self.leading = Gauge("baton_operator_leading", "1 while this operator holds the Lease.", registry=self.registry)

    def follow(self, waiting: Callable[[], int], leading: Callable[[], bool]) -> None:
        """Read these two whenever somebody looks."""
        self.waiting.set_function(waiting)
        self.leading.set_function(leading)

    def count_call(self, verb: str, resource: str) -> None:
        self.calls.labels(verb, resource).inc()

    def text(self) -> bytes:
        """In Prometheus's text form."""
        return generate_latest(self.registry)
