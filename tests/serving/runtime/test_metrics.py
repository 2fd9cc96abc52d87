"""What `/metrics` says after requests of every kind."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

from baton_serving.runtime.messages import Timings
from baton_serving.runtime.metrics import METRICS, Metrics
from baton_serving.runtime.requests import Choice, GenerateRequest, RequestRecord
from baton_serving.sampling.params import SamplingParams

NOW = 1000.0


def samples(metrics: Metrics, stats: dict[str, float] | None = None) -> dict[str, float]:
    """Value by name and labels, of everything but buckets and creation times."""
    found = {}
    for family in text_string_to_metric_families(metrics.exposition(stats or {}).decode()):
        for sample in family.samples:
            if not sample.name.endswith(("_bucket", "_created")):
                labels = "".join(f"{{{key}={value}}}" for key, value in sorted(sample.labels.items()))
                found[sample.name + labels] = sample.value
    return found


def finished(metrics: Metrics, *, stream: bool = True, outcome: str = "stop") -> None:
    """A request of 3 prompt tokens that answers 5 tokens: one after 0.5 s, four a second later."""
    request = GenerateRequest(
        "r", [[1, 2, 3]], [Choice(0, SamplingParams())], stream=stream, route="/generate", received=NOW
    )
    record = RequestRecord.of(request)
    metrics.started(record)
    for at, tokens in ((NOW + 0.5, 1), (NOW + 1.5, 4)):
        metrics.produced(record, 0, tokens, at)
        record.first_token = record.first_token or at
        record.last_output[0] = at
        record.output_ids[0] += [9] * tokens
    record.cached_tokens = [2]
    record.finished = NOW + 2
    record.outcome = outcome
    record.timings = Timings(received=10.0, scheduled=10.25, first_token=10.75)
    metrics.finished(record)


def test_a_streamed_request() -> None:
    metrics = Metrics({"model": "tiny"})
    finished(metrics)
    found = samples(metrics)
    assert found["baton_time_to_first_token_seconds_sum"] == 0.5
    assert found["baton_inter_token_latency_seconds_count"] == 4
    assert found["baton_inter_token_latency_seconds_sum"] == 1.0
    assert found["baton_e2e_request_latency_seconds_sum"] == 2.0
    assert found["baton_queue_time_seconds_sum"] == 0.25
    assert found["baton_prompt_tokens_total"] == 3
    assert found["baton_generation_tokens_total"] == 5
    assert found["baton_cached_tokens_total"] == 2
    assert found["baton_requests_total{outcome=stop}{route=/generate}"] == 1


def test_an_unstreamed_request_has_its_first_token_by_the_schedulers_clock() -> None:
    metrics = Metrics({})
    finished(metrics, stream=False)
    assert samples(metrics)["baton_time_to_first_token_seconds_sum"] == 0.75


def test_outcomes_are_counted_apart() -> None:
    metrics = Metrics({})
    for outcome in ("stop", "disconnected", "disconnected"):
        finished(metrics, outcome=outcome)
    found = samples(metrics)
    assert found["baton_requests_total{outcome=stop}{route=/generate}"] == 1
    assert found["baton_requests_total{outcome=disconnected}{route=/generate}"] == 2


def test_the_schedulers_figures_are_shown_as_they_are() -> None:
    found = samples(Metrics({"model": "tiny"}), {"pages_free": 7, "steps_total": 9, "something_else": 1})
    assert found["baton_kv_pages_free"] == 7
    assert found["baton_scheduler_steps_total"] == 9
    assert found["baton_worker_info{model=tiny}"] == 1
    assert "baton_kv_pages" not in found
    assert not any("something_else" in name for name in found)


def test_every_metric_has_a_name_of_its_own_and_one_sentence() -> None:
    names = [spec.name for spec in METRICS]
    assert len(set(names)) == len(names)
    for spec in METRICS:
        assert re.fullmatch(r"baton_[a-z0-9_]+[a-z0-9]", spec.name)
        assert not spec.name.endswith(("_total", "_info"))
        assert spec.help.endswith(".")
        assert (spec.kind == "histogram") == bool(spec.buckets)


def test_every_metric_is_exposed() -> None:
    metrics = Metrics({"model": "tiny"})
    finished(metrics)
    found = samples(metrics, {spec.stat: 1.0 for spec in METRICS if spec.stat})
    for spec in METRICS:
        assert any(name.startswith(spec.name) for name in found), spec.name
