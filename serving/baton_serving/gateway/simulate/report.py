"""What a simulated run is judged by: how many requests were served well, how soon, and from which caches."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from rich.table import Table

from baton_serving.gateway.simulate.worker import Job

QUANTILES = (50, 90, 99)


class Objective(msgspec.Struct, frozen=True):
    """Seconds to the first token, and between two tokens on average, up to which a request was served well."""

    ttft: float = 2.0
    tpot: float = 0.05


class Outcome(msgspec.Struct, frozen=True):
    """One run. Times in seconds, by percentile where there are several; `goodput` in requests a second."""

    prefill_policy: str
    decode_policy: str
    requests: int
    refused: int
    seconds: float
    goodput: float
    good_share: float
    output_tokens_per_second: float
    ttft: dict[str, float]
    tpot: dict[str, float]
    cache_hit: float
    busiest_prefill_share: float

    @property
    def name(self) -> str:
        """As `--policy` takes it."""
        same = self.prefill_policy == self.decode_policy
        return self.prefill_policy if same else f"{self.prefill_policy}:{self.decode_policy}"


class Account:
    """Takes in the jobs of one run as they end."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.ttfts: list[float] = []
        self.tpots: list[float] = []
        self._refused = self._good = 0
        self._prompt_tokens = self._cached_tokens = self._output_tokens = 0
        self._first = float("inf")
        self._last = 0.0
        self._by_prefill: dict[str, int] = {}

    @property
    def good(self) -> int:
        """Requests that were served well."""
        return self._good

    @property
    def count(self) -> int:
        return len(self.ttfts) + self._refused

    def add(self, job: Job) -> None:
        self._first = min(self._first, job.arrived)
        if job.refused:
            self._refused += 1
            return
        request = job.request
        ttft = job.first_token - job.arrived
        tpot = (job.ended - job.first_token) / (request.output_tokens - 1) if request.output_tokens > 1 else 0.0
        self.ttfts.append(ttft)
        self.tpots.append(tpot)
        self._good += ttft <= self._objective.ttft and tpot <= self._objective.tpot
        self._last = max(self._last, job.ended)
        self._prompt_tokens += request.prompt_tokens
        self._cached_tokens += job.cached
        self._output_tokens += request.output_tokens
        worker = job.prefill or job.decode
        assert worker is not None
        computed = request.prompt_tokens - job.cached
        self._by_prefill[worker.id] = self._by_prefill.get(worker.id, 0) + computed

    def outcome(self, prefill_policy: str, decode_policy: str) -> Outcome:
        seconds = max(1e-9, self._last - min(self._first, self._last))
        computed = sum(self._by_prefill.values())
        return Outcome(
            prefill_policy=prefill_policy,
            decode_policy=decode_policy,
            requests=self.count,
            refused=self._refused,
            seconds=seconds,
            goodput=self._good / seconds,
            good_share=self._good / max(1, self.count),
            output_tokens_per_second=self._output_tokens / seconds,
            ttft=_quantiles(self.ttfts),
            tpot=_quantiles(self.tpots),
            cache_hit=self._cached_tokens / max(1, self._prompt_tokens),
            busiest_prefill_share=max(self._by_prefill.values(), default=0) / max(1, computed),
        )


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    """By nearest rank."""
    ordered = sorted(values) or [0.0]
    return {f"p{q}": ordered[min(len(ordered) - 1, (len(ordered) * q) // 100)] for q in QUANTILES}


def table(outcomes: Sequence[Outcome], objective: Objective) -> Table:
    """The outcomes side by side, in 80 columns."""
    title = f"well: first token within {objective.ttft:g} s, then {objective.tpot * 1000:g} ms a token; p50/p90/p99"
    made = Table(title=title, title_justify="left")
    made.add_column("policy", no_wrap=True)
    for head in ("well/s", "well", "429s", "TTFT ms", "TPOT ms", "cached"):
        made.add_column(head, justify="right", no_wrap=True)
    for one in outcomes:
        made.add_row(
            one.name,
            f"{one.goodput:.1f}",
            f"{one.good_share:.0%}",
            str(one.refused),
            "/".join(f"{one.ttft[f'p{q}'] * 1000:.0f}" for q in QUANTILES),
            "/".join(f"{one.tpot[f'p{q}'] * 1000:.1f}" for q in (50, 99)),
            f"{one.cache_hit:.1%}",
        )
    return made
