"""Prometheus metrics of the gateway, in a collector registry of its own."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from baton_serving.gateway.fleet import Fleet

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters and histograms that requests feed, and gauges read off the fleet when scraped."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._collectors = CollectorRegistry()
        self.requests = Counter(
            "baton_gateway_requests",
            "Requests ended: done, refused by a worker, failed with an error status, broken off, or client_gone.",
            ["outcome"],
            registry=self._collectors,
        )
        self.retries = Counter(
            "baton_gateway_retries", "Attempts lost, by the leg that was.", ["leg"], registry=self._collectors
        )
        self.first_byte = Histogram(
            "baton_gateway_time_to_first_byte_seconds",
            "From the request's arrival to the first byte sent to the client, streams only.",
            buckets=_SECONDS,
            registry=self._collectors,
        )
        self.duration = Histogram(
            "baton_gateway_request_duration_seconds",
            "From the request's arrival to its end.",
            buckets=_SECONDS,
            registry=self._collectors,
        )
        self._collectors.register(self)

    def collect(self) -> Iterator[Metric]:
        """Gauges of the fleet as it stands; called by prometheus_client."""
        workers = GaugeMetricFamily("baton_gateway_workers", "Workers in view.", labels=["role", "state"])
        legs = GaugeMetricFamily("baton_gateway_legs", "Open requests, by worker.", labels=["worker"])
        tally: Tally[tuple[str, str]] = Tally()
        for endpoint in self._fleet.endpoints.values():
            tally[endpoint.worker.role, endpoint.status.state] += 1
            legs.add_metric([endpoint.worker.id], len(endpoint.legs))
        for labels, number in tally.items():
            workers.add_metric(labels, number)
        yield workers
        yield legs

    def text(self) -> bytes:
        return generate_latest(self._collectors)
