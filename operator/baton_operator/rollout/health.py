"""How requests fare on workers, by the workers' own metrics, from when each was first looked at."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from baton_bootstrap.auth import PEER_NAME
from baton_operator.rollout.model import Health

_FAULTS: Final = frozenset({"internal_error", "unavailable", "deadline_exceeded", "queue_full"})
_TIMEOUT: Final = aiohttp.ClientTimeout(total=5.0)


@dataclass(frozen=True)
class Counts:
    """Requests of one worker; `ttft` maps a bound in seconds to the requests whose first token came within it."""

    requests: float = 0.0
    failed: float = 0.0
    ttft: Mapping[float, float] = field(default_factory=dict)

    def since(self, begin: Counts) -> Counts:
        """What came after `begin`."""
        ttft = {bound: count - begin.ttft.get(bound, 0.0) for bound, count in self.ttft.items()}
        return Counts(self.requests - begin.requests, self.failed - begin.failed, ttft)


def health_of(counts: Iterable[Counts], probe: bool | None = None) -> Health:
    """Of several workers together; `probe` is the outcome of the probe, None before it was asked."""
    counts = list(counts)
    requests, failed = (int(sum(getattr(one, name) for one in counts)) for name in ("requests", "failed"))
    return Health(requests, failed, _p95(counts), probe)


class HealthBook:
    """Workers are told apart by id and incarnation: with other weights a worker counts from nothing."""

    def __init__(self) -> None:
        self._begin: dict[tuple[str, str], Counts] = {}

    async def look(
        self, session: aiohttp.ClientSession, workers: Iterable[tuple[str, str, str]]
    ) -> Mapping[str, Counts]:
        """Read the metrics of workers, each an id, incarnation and base URL; by id, those that answered."""
        workers = list(workers)
        results = await asyncio.gather(*(_read(session, url) for _, _, url in workers))
        found = {}
        for (name, incarnation, _), counts in zip(workers, results, strict=True):
            if counts is not None:
                found[name] = counts.since(self._begin.setdefault((name, incarnation), counts))
        return found


async def ask_probe(session: aiohttp.ClientSession, url: str, prompt: str, tls: ssl.SSLContext | None = None) -> str:
    """What the worker at `url` answers to `prompt`; why there is no answer, when there is none."""
    proof: dict[str, Any] = {} if tls is None else {"ssl": tls, "server_hostname": PEER_NAME}
    body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 256}
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body, **proof) as response:
            answer = await response.json()
        return str(answer["choices"][0]["message"]["content"])
    except (aiohttp.ClientError, TimeoutError, KeyError, ValueError) as error:
        return f"no answer: {error}"


def _p95(counts: Iterable[Counts]) -> float:
    """Upper bound of the bucket that holds the 95th percentile; 0 when nothing was measured."""
    sums: dict[float, float] = {}
    for one in counts:
        for bound, count in one.ttft.items():
            sums[bound] = sums.get(bound, 0.0) + count
    total = max(sums.values(), default=0.0)
    return min((bound for bound, count in sums.items() if count >= 0.95 * total), default=0.0) if total else 0.0


async def _read(session: aiohttp.ClientSession, url: str) -> Counts | None:
    try:
        async with session.get(f"{url}/metrics", timeout=_TIMEOUT) as response:
            response.raise_for_status()
            return _counts(await response.text())
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None


def _counts(text: str) -> Counts:
    """From Prometheus's text format; ValueError for anything else, such as what a proxy says."""
    requests = failed = 0.0
    ttft: dict[float, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "baton_requests_total":
                requests += sample.value
                failed += sample.value if sample.labels.get("outcome") in _FAULTS else 0.0
            elif sample.name == "baton_time_to_first_token_seconds_bucket":
                ttft[float(sample.labels["le"])] = sample.value
    return Counts(requests, failed, ttft)
