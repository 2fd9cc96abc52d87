"""Prometheus metrics of the bootstrap server, in a collector registry of its own."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from baton_bootstrap.registry import Registry


class Metrics:
    """Counters that the service raises, and gauges read off the registry when scraped."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._collectors = CollectorRegistry()
        self.registrations = Counter(
            "baton_bootstrap_registrations", "Registrations accepted.", registry=self._collectors
        )
        self.refusals = Counter("baton_bootstrap_refusals", "Registrations refused.", registry=self._collectors)
        self.departures = Counter(
            "baton_bootstrap_departures", "Workers gone, by reason.", ["reason"], registry=self._collectors
        )
        self.snapshots = Counter(
            "baton_bootstrap_snapshots", "Full snapshots sent to watchers.", registry=self._collectors
        )
        self.watchers = Gauge("baton_bootstrap_watchers", "Open watch streams.", registry=self._collectors)
        self._collectors.register(self)

    def collect(self) -> Iterator[Metric]:
        """Gauges of the registry as it stands; called by prometheus_client."""
        workers = GaugeMetricFamily(
            "baton_bootstrap_workers", "Live workers, by role and state.", labels=["role", "state"]
        )
        tally = Tally((entry.worker.role, entry.status.state) for entry, _, _ in self._registry.entries())
        for (role, state), count in tally.items():
            workers.add_metric([role, state], count)
        yield workers
        yield GaugeMetricFamily("baton_bootstrap_revision", "Revision of the registry.", value=self._registry.revision)
        yield GaugeMetricFamily(
            "baton_bootstrap_warming",
            "1 while workers of a former run may still be coming back.",
            value=float(self._registry.warming),
        )

    def text(self) -> bytes:
        return generate_latest(self._collectors)
