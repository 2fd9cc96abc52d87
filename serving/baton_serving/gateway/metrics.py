"""Every metric of a gateway in one table, from which `/metrics` and docs/gateway-metrics.md are made.

Counts are plain numbers, so that counting costs next to nothing and several processes' figures can be added up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


@dataclass(frozen=True)
class MetricSpec:
    """One metric; `name` as Prometheus sees it, without a counter's `_total`."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


METRICS: Final = (
    MetricSpec(
        "baton_gateway_requests",
        "counter",
        "Requests ended: done, refused by a worker, failed with an error status, broken_off, or client_gone.",
        ("outcome", "path"),
    ),
    MetricSpec("baton_gateway_lost_legs", "counter", "Legs of requests that were lost.", ("leg",)),
    MetricSpec("baton_gateway_migrations", "counter", "Streams that went on at another worker.", ("how",)),
    MetricSpec(
        "baton_gateway_time_to_first_byte_seconds",
        "histogram",
        "Seconds from a request's arrival to the first byte sent to the client, streams only.",
    ),
    MetricSpec("baton_gateway_request_duration_seconds", "histogram", "Seconds from a request's arrival to its end."),
    MetricSpec("baton_gateway_workers", "gauge", "Workers in view.", ("role", "state")),
    MetricSpec("baton_gateway_legs", "gauge", "Open requests, by worker.", ("worker",)),
    MetricSpec("baton_gateway_open_requests", "gauge", "Requests that are being served or wait.", ("state",)),
    MetricSpec("baton_gateway_open_circuits", "gauge", "Workers and links that are not asked for a while.", ("kind",)),
    MetricSpec("baton_gateway_connections", "gauge", "Clients' connections."),
    MetricSpec("baton_gateway_bootstrap_servers", "gauge", "Replicas of the bootstrap server that answer."),
)

Labelled = dict[str, float]  # label values joined by a tab → value


class Figure(msgspec.Struct):
    """The values of one metric of one process. A histogram's are its buckets' counts, not cumulative, and its sum."""

    values: Labelled = msgspec.field(default_factory=dict)
    buckets: list[int] = []
    total: float = 0.0


class Histogram:
    """Counts seconds into `BUCKETS`."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds


class Figures:
    """What requests count up. Gauges are read off when asked for."""

    def __init__(self) -> None:
        self._requests: Tally[tuple[str, ...]] = Tally()
        self._lost: Tally[str] = Tally()
        self._migrations: Tally[str] = Tally()
        self._first_byte = Histogram()
        self._duration = Histogram()

    def ended(self, outcome: str, path: str, seconds: float, first_byte: float) -> None:
        """A request is over; `first_byte` is 0 when none was sent."""
        self._requests[outcome, path] += 1
        self._duration.observe(seconds)
        if first_byte:
            self._first_byte.observe(first_byte)

    def lost(self, leg: str) -> None:
        self._lost[leg] += 1

    def migrated(self, how: str) -> None:
        """`computed` again elsewhere, or `moved` with its pages."""
        self._migrations[how] += 1

    def report(self, gauges: Mapping[str, Mapping[tuple[str, ...], float]]) -> dict[str, Figure]:
        """All figures of this process by metric name, to be added up with those of others."""
        counters: dict[str, dict[tuple[str, ...], float]] = {
            "baton_gateway_requests": dict(self._requests),
            "baton_gateway_lost_legs": {(leg,): count for leg, count in self._lost.items()},
            "baton_gateway_migrations": {(how,): count for how, count in self._migrations.items()},
        }
        report = {
            name: Figure(values={"\t".join(labels): value for labels, value in values.items()})
            for name, values in {**counters, **gauges}.items()
        }
        for name, histogram in (
            ("baton_gateway_time_to_first_byte_seconds", self._first_byte),
            ("baton_gateway_request_duration_seconds", self._duration),
        ):
            report[name] = Figure(buckets=list(histogram.counts), total=histogram.total)
        return report


# What every process sees alike, so that adding it up would be wrong.
_SAME_EVERYWHERE = frozenset({"baton_gateway_workers", "baton_gateway_bootstrap_servers"})


def add_up(reports: Iterable[Mapping[str, Figure]]) -> dict[str, Figure]:
    """One report for all processes of a gateway."""
    merged: dict[str, Figure] = {}
    for report in reports:
        for name, figure in report.items():
            held = merged.get(name)
            if held is None:
                merged[name] = Figure(dict(figure.values), list(figure.buckets), figure.total)
                continue
            for labels, value in figure.values.items():
                if name in _SAME_EVERYWHERE:
                    held.values[labels] = max(value, held.values.get(labels, 0.0))
                else:
                    held.values[labels] = held.values.get(labels, 0.0) + value
            held.buckets = [mine + theirs for mine, theirs in zip(held.buckets, figure.buckets, strict=True)]
            held.total += figure.total
    return merged


def exposition(report: Mapping[str, Figure]) -> bytes:
    """Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_Report(report))
    return generate_latest(registry)


class _Report(Collector):
    def __init__(self, report: Mapping[str, Figure]) -> None:
        self._report = report

    def collect(self) -> Iterable[Metric]:
        for spec in METRICS:
            yield _family(spec, self._report.get(spec.name, Figure()))


def _family(spec: MetricSpec, figure: Figure) -> Metric:
    if spec.kind == "histogram":
        histogram = HistogramMetricFamily(spec.name, spec.help)
        counts, reached = figure.buckets or [0] * (len(BUCKETS) + 1), 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), counts, strict=True):
            reached += count
            buckets.append((bound, reached))
        histogram.add_metric([], buckets, figure.total)
        return histogram
    kind = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
    family: CounterMetricFamily | GaugeMetricFamily = kind(spec.name, spec.help, labels=spec.labels)
    for labels, value in figure.values.items():
        family.add_metric(labels.split("\t") if spec.labels else [], value)
    return family
