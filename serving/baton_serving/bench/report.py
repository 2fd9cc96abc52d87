"""Figures of a benchmark run: percentiles, throughput, failures; as a table for people and as JSON."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import msgspec
from rich.table import Table

from baton_serving.bench.client import Ending, Outcome


class Spread(msgspec.Struct, frozen=True):
    """Mean and percentiles (nearest rank) of a sample, in milliseconds; NaN when it is empty."""

    mean: float
    p50: float
    p90: float
    p99: float
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        if not seconds:
            return cls(math.nan, math.nan, math.nan, math.nan, 0)
        ordered = sorted(value * 1000 for value in seconds)
        p50, p90, p99 = (ordered[max(0, math.ceil(len(ordered) * q) - 1)] for q in (0.5, 0.9, 0.99))
        return cls(sum(ordered) / len(ordered), p50, p90, p99, len(ordered))


class Summary(msgspec.Struct, frozen=True):
    """One run. Latencies are of requests that ended well; `errors` counts the others by reason.

    `ttft`: start to first tokens. `tpot`: time per output token after the first. `itl`: between chunks of tokens.
    `e2e`: start to end. Throughputs are per second over the whole run and count every token received.
    """

    seconds: float
    requests: int
    endings: dict[str, int]
    errors: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    request_throughput: float
    prompt_throughput: float
    output_throughput: float
    mean_concurrency: float
    ttft: Spread
    tpot: Spread
    itl: Spread
    e2e: Spread

    @property
    def clean(self) -> bool:
        """Whether every request got its terminal reply and none failed (clients that left count as served)."""
        return not self.endings[Ending.FAILED.value] and not self.endings[Ending.LOST.value]


def summarise(outcomes: Sequence[Outcome], seconds: float) -> Summary:
    """The figures of `outcomes`, which took `seconds` from the first start to the last end."""
    done = [outcome for outcome in outcomes if outcome.ending is Ending.DONE]
    counted = Counter(outcome.ending for outcome in outcomes)
    prompt = sum(outcome.prompt_tokens for outcome in outcomes)
    completion = sum(outcome.completion_tokens for outcome in outcomes)
    return Summary(
        seconds=seconds,
        requests=len(outcomes),
        endings={ending.value: counted[ending] for ending in Ending},
        errors=dict(Counter(outcome.error for outcome in outcomes if outcome.error)),
        prompt_tokens=prompt,
        completion_tokens=completion,
        request_throughput=len(done) / seconds,
        prompt_throughput=prompt / seconds,
        output_throughput=completion / seconds,
        mean_concurrency=sum(outcome.ended - outcome.started for outcome in outcomes) / seconds,
        ttft=Spread.of([outcome.chunks[0] - outcome.started for outcome in done if outcome.chunks]),
        tpot=Spread.of([pace for outcome in done if (pace := _per_token(outcome)) is not None]),
        itl=Spread.of([gap for outcome in done for gap in _gaps(outcome)]),
        e2e=Spread.of([outcome.ended - outcome.started for outcome in done]),
    )


def _per_token(outcome: Outcome) -> float | None:
    if outcome.completion_tokens < 2 or not outcome.chunks:
        return None
    return (outcome.chunks[-1] - outcome.chunks[0]) / (outcome.completion_tokens - 1)


def _gaps(outcome: Outcome) -> list[float]:
    return [after - before for before, after in itertools.pairwise(outcome.chunks)]


def tables(summary: Summary) -> list[Table]:
    """Latencies, throughput, and, if there were any, the errors."""
    latency = Table("latency (ms)", "mean", "p50", "p90", "p99", title_justify="left")
    for name, spread in (
        ("time to first token", summary.ttft),
        ("time per output token", summary.tpot),
        ("inter-token latency", summary.itl),
        ("whole request", summary.e2e),
    ):
        latency.add_row(name, *(f"{value:.2f}" for value in (spread.mean, spread.p50, spread.p90, spread.p99)))
    totals = Table("requests and throughput", "", title_justify="left")
    for name, text in (
        ("requests", ", ".join(f"{count} {ending}" for ending, count in summary.endings.items() if count)),
        ("seconds", f"{summary.seconds:.2f}"),
        ("requests in flight, mean", f"{summary.mean_concurrency:.1f}"),
        ("requests per second", f"{summary.request_throughput:.2f}"),
        ("prompt tokens per second", f"{summary.prompt_throughput:.0f} ({summary.prompt_tokens} in all)"),
        ("output tokens per second", f"{summary.output_throughput:.0f} ({summary.completion_tokens} in all)"),
    ):
        totals.add_row(name, text)
    if not summary.errors:
        return [totals, latency]
    errors = Table("error", "requests")
    for error, count in sorted(summary.errors.items(), key=lambda entry: -entry[1])[:10]:
        errors.add_row(error, str(count))
    return [totals, latency, errors]
