"""Every metric of a worker in one table, from which `/metrics` and docs/metrics.md are made.

Gauges and counters come from the scheduler: `WorkerState.stats` under the key `stat`. Histograms and the request
counters are measured in the API process, where the client's clock runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from baton_serving.runtime.messages import Failure
from baton_serving.runtime.requests import RequestRecord

Kind = Literal["gauge", "counter", "histogram", "info"]

_LATENCY_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_TOKEN_LATENCY_BUCKETS: Final = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1),
    *(0.15, 0.2, 0.4, 0.8, 1.6, 3.2),
)
_TOKEN_COUNT_BUCKETS: Final = (1, 4, 16, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


@dataclass(frozen=True)
class MetricSpec:
    """One metric: `stat` is the scheduler's key when it comes from there; `buckets` are those of a histogram."""

    name: str
    kind: Kind
    help: str
    stat: str = ""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _gauge(name: str, stat: str, help_text: str) -> MetricSpec:
    return MetricSpec(f"baton_{name}", "gauge", help_text, stat=stat)


def _counter(name: str, stat: str, help_text: str) -> MetricSpec:
    return MetricSpec(f"baton_{name}", "counter", help_text, stat=stat)


METRICS: Final[tuple[MetricSpec, ...]] = (
    MetricSpec("baton_worker", "info", "Name, weights and role of the worker."),
    MetricSpec(
        "baton_time_to_first_token_seconds",
        "histogram",
        "Seconds from a request's arrival to its first token (TTFT).",
        buckets=_LATENCY_BUCKETS,
    ),
    MetricSpec(
        "baton_inter_token_latency_seconds",
        "histogram",
        "Seconds between two tokens of an answer (TPOT), the mean over tokens that came together.",
        buckets=_TOKEN_LATENCY_BUCKETS,
    ),
    MetricSpec(
        "baton_e2e_request_latency_seconds",
        "histogram",
        "Seconds from a request's arrival to its end.",
        buckets=_LATENCY_BUCKETS,
    ),
    MetricSpec(
        "baton_queue_time_seconds",
        "histogram",
        "Seconds a request waited for its first prefill step.",
        buckets=_LATENCY_BUCKETS,
    ),
    MetricSpec("baton_request_prompt_tokens", "histogram", "Prompt tokens per request.", buckets=_TOKEN_COUNT_BUCKETS),
    MetricSpec(
        "baton_request_generation_tokens", "histogram", "Generated tokens per request.", buckets=_TOKEN_COUNT_BUCKETS
    ),
    MetricSpec("baton_requests", "counter", "Requests that ended, by outcome and route.", labels=("outcome", "route")),
    MetricSpec("baton_prompt_tokens", "counter", "Prompt tokens of requests that ended."),
    MetricSpec("baton_generation_tokens", "counter", "Tokens generated for requests that ended."),
    MetricSpec("baton_cached_tokens", "counter", "Prompt tokens found in the radix cache, of requests that ended."),
    _gauge("requests_running", "requests_running", "Requests whose tokens are being decoded."),
    _gauge("requests_prefilling", "requests_prefilling", "Requests whose prompt is partly computed."),
    _gauge("requests_waiting", "requests_waiting", "Requests in the queue, which hold no pages."),
    _gauge("tokens_waiting", "tokens_waiting", "Prompt tokens that are still to be computed or found in the cache."),
    _gauge("requests_reserved", "requests_reserved", "Requests whose KV is on its way here from a prefill worker."),
    _gauge("token_usage_ratio", "token_usage", "Share of the KV pool in use by running requests, 0 to 1."),
    _gauge("cache_hit_ratio", "cache_hit_rate", "Share of recent prompt tokens found in the radix cache, 0 to 1."),
    _gauge("generation_tokens_per_second", "gen_throughput", "Tokens generated per second, lately."),
    _gauge("kv_pages", "pages_total", "Pages of the KV pool."),
    _gauge("kv_pages_free", "pages_free", "Pages that nothing occupies."),
    _gauge("kv_pages_cached", "pages_cached", "Pages that the radix cache holds."),
    _gauge("kv_pages_evictable", "pages_evictable", "Pages of the radix cache that no request uses."),
    _gauge("kv_pages_in_use", "pages_in_use", "Pages held by running requests."),
    _gauge("kv_pages_quarantined", "pages_quarantined", "Pages a remote writer may still reach."),
    _gauge(
        "new_token_ratio", "new_token_ratio", "Share of their longest answer that running requests are planned to use."
    ),
    _counter("retractions", "retractions_total", "Times that a request gave up its pages to be computed again later."),
    _counter("scheduler_steps", "steps_total", "Steps that the scheduler booked."),
    _counter("computed_tokens", "computed_tokens_total", "Prompt tokens computed, without cached ones."),
    _counter("prompt_seconds", "prompt_seconds_total", "Seconds of the steps that computed prompts."),
    _counter("answer_tokens", "answer_tokens_total", "Tokens put out after the first of each answer."),
    _counter("answer_seconds", "answer_seconds_total", "Seconds from a token to the next, summed over requests."),
    _counter("sampled_tokens", "generated_tokens_total", "Tokens sampled, those of requests that go on included."),
    _counter("handoff_sent_bytes", "handoff_bytes_sent", "Bytes of KV pages written to other workers."),
    _counter("handoff_received_bytes", "handoff_bytes_received", "Bytes of KV pages that other workers wrote here."),
    _counter("handoff_sent_pages", "handoff_pages_sent", "KV pages written to other workers."),
    _counter("handoff_received_pages", "handoff_pages_received", "KV pages that other workers wrote here."),
    _counter("handoff_receive_seconds", "handoff_receive_seconds", "Seconds that pages were on their way here."),
    _counter("handoffs_delivered", "handoff_delivered", "Requests that another worker took over."),
    _counter("handoffs_arrived", "handoff_arrived", "Requests taken over from another worker."),
    _counter("handoff_send_failures", "handoff_sends_failed", "Requests that could not be handed over."),
    _counter("handoff_receive_failures", "handoff_receives_failed", "Requests that did not arrive."),
    _counter(
        "handoff_mismatched_pages", "handoff_mismatched_pages", "Pages that arrived with another hash than they left."
    ),
    _counter(
        "handoff_refused_messages",
        "handoff_refused_messages",
        "Control messages refused: strange, stale or broken.",
    ),
    _gauge(
        "handoff_source_pages_quarantined",
        "handoff_source_pages_quarantined",
        "Pages that a write may still read.",
    ),
    _gauge("handoff_peers", "handoff_peers", "Workers with which pages can be exchanged now."),
    _counter("handoff_fences", "handoff_fences", "Times that a peer was cut off by replacing the transfer engines."),
    _gauge(
        "handoff_transport_degraded",
        "handoff_transport_degraded",
        "1 while a slower transport than asked for is used.",
    ),
    _gauge("handoff_waiting", "handoff_waiting", "Requests that wait for their prefill worker or for pages here."),
    _gauge("scheduler_tick", "tick", "Turns of the scheduler loop; it moves when idle too."),
)


class Metrics:
    """The metrics of one worker, an observer of its requests. `worker` are the labels of `baton_worker_info`."""

    def __init__(self, worker: Mapping[str, str]) -> None:
        self._worker = worker
        self._registry = CollectorRegistry()
        self._histograms: dict[str, Histogram] = {}
        self._counters: dict[str, Counter] = {}
        for spec in METRICS:
            if spec.kind == "histogram":
                self._histograms[spec.name] = Histogram(
                    spec.name, spec.help, buckets=spec.buckets, registry=self._registry
                )
            elif spec.kind == "counter" and not spec.stat:
                self._counters[spec.name] = Counter(spec.name, spec.help, spec.labels, registry=self._registry)

    def exposition(self, stats: Mapping[str, float]) -> bytes:
        """All metrics in the Prometheus text format; `stats` are the scheduler's latest figures."""
        scheduler = CollectorRegistry()
        scheduler.register(_SchedulerCollector(self._worker, stats))
        return generate_latest(self._registry) + generate_latest(scheduler)

    def started(self, record: RequestRecord) -> None:
        """Nothing is counted before a request ends: counters then agree with each other."""

    def failed(self, failure: Failure) -> None:
        """The requests that it ends are counted as they end."""

    def produced(self, record: RequestRecord, index: int, tokens: int, now: float) -> None:
        last = record.last_output[index]
        if last:
            histogram = self._histograms["baton_inter_token_latency_seconds"]
            for _ in range(tokens):
                histogram.observe((now - last) / tokens)
        elif not record.first_token and record.request.stream:
            self._observe("baton_time_to_first_token_seconds", now - record.request.received)

    def finished(self, record: RequestRecord) -> None:
        request, timings = record.request, record.timings
        self._observe("baton_e2e_request_latency_seconds", record.finished - request.received)
        self._observe("baton_request_prompt_tokens", record.prompt_tokens)
        self._observe("baton_request_generation_tokens", record.completion_tokens)
        if timings is not None and timings.scheduled:
            self._observe("baton_queue_time_seconds", timings.scheduled - timings.received)
        if timings is not None and timings.first_token and not request.stream:
            self._observe("baton_time_to_first_token_seconds", timings.first_token - timings.received)
        self._counters["baton_requests"].labels(record.outcome, request.route).inc()
        self._counters["baton_prompt_tokens"].inc(record.prompt_tokens)
        self._counters["baton_generation_tokens"].inc(record.completion_tokens)
        self._counters["baton_cached_tokens"].inc(record.cached_prompt_tokens)

    def _observe(self, name: str, value: float) -> None:
        self._histograms[name].observe(value)


class _SchedulerCollector(Collector):
    """The scheduler's figures as they are; those it does not report are left out."""

    def __init__(self, worker: Mapping[str, str], stats: Mapping[str, float]) -> None:
        self._worker = worker
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        for spec in METRICS:
            if spec.kind == "info":
                yield InfoMetricFamily(spec.name, spec.help, value=dict(self._worker))
            elif spec.stat in self._stats:
                family = GaugeMetricFamily if spec.kind == "gauge" else CounterMetricFamily
                yield family(spec.name, spec.help, value=self._stats[spec.stat])
