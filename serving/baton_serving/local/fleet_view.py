"""A local service in the rollout planner's terms: its workers as they are now, and how requests fare on them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from baton_bootstrap.records import Entry, Phase
from baton_operator.rollout import Health, Stage, Worker
from baton_serving.local.plan import Kind
from baton_serving.local.supervisor import Slot, Supervisor

log = logging.getLogger(__name__)

_STAGES = {
    Phase.SERVING: Stage.SERVING,
    Phase.STAGING: Stage.STAGING,
    Phase.STAGED: Stage.STAGED,
    Phase.HOLDING: Stage.SWITCHING,
    Phase.SWITCHING: Stage.SWITCHING,
    Phase.FAILED: Stage.FAILED,
}
_FAULTS = frozenset({"internal_error", "unavailable", "deadline_exceeded", "queue_full"})
_TIMEOUT = aiohttp.ClientTimeout(total=5.0)


def entry_of(slot: Slot, supervisor: Supervisor) -> Entry | None:
    """What the registry holds of a slot's worker, if its process is there."""
    return supervisor.view.entries.get(slot.spec.name) if slot.running else None


def seen_workers(supervisor: Supervisor, versions: Mapping[str, str]) -> tuple[Worker, ...]:
    """All workers, of which `versions` says by name what they serve. One that is started again counts as not ready."""
    found = []
    for name, slot in supervisor.slots.items():
        if slot.spec.kind is not Kind.WORKER:
            continue
        entry = entry_of(slot, supervisor)
        order = int(name.rpartition("-")[2])
        if entry is None:
            stage = Stage.FAILED if slot.refused else Stage.SERVING
            heard = versions[name] if slot.refused else ""
            worker = Worker(
                name, slot.spec.role, versions[name], False, stage=stage, heard=heard, error=slot.refused, order=order
            )
        else:
            worker = _worker(name, slot, entry, versions[name], order)
        found.append(worker)
    return tuple(found)


def _worker(name: str, slot: Slot, entry: Entry, version: str, order: int) -> Worker:
    progress = entry.status.progress
    return Worker(
        id=name,
        role=slot.spec.role,
        version=version,
        ready=entry.ready and not slot.leaving,
        whole=slot.spec.role != "worker" and entry.worker.role == "both",
        stage=_STAGES[progress.phase],
        heard=progress.revision,
        digest=progress.digest,
        error=progress.error,
        order=order,
    )


@dataclass(frozen=True)
class _Counts:
    requests: float = 0.0
    failed: float = 0.0
    ttft: Mapping[float, float] = field(default_factory=dict)  # upper bound in seconds -> requests below it


class HealthBook:
    """Counts requests of each version from when it began on each worker, by the workers' own metrics."""

    def __init__(self) -> None:
        self._begin: dict[tuple[str, str], _Counts] = {}  # worker, incarnation
        self._now: dict[tuple[str, str], _Counts] = {}

    async def look(self, session: aiohttp.ClientSession, entries: Mapping[str, Entry]) -> None:
        """Read every worker's metrics once; one that does not answer is left as it was."""
        keys = [(name, entry.worker.incarnation, entry.worker.http_url) for name, entry in entries.items()]
        results = await asyncio.gather(*(_read(session, url) for _, _, url in keys))
        for (name, incarnation, _), counts in zip(keys, results, strict=True):
            if counts is not None:
                self._begin.setdefault((name, incarnation), counts)
                self._now[name, incarnation] = counts

    def health(
        self, entries: Mapping[str, Entry], versions: Mapping[str, str], probe: bool | None
    ) -> dict[str, Health]:
        """By version; `probe` is the outcome of the probe, for whichever version is asked about."""
        found: dict[str, Health] = {}
        for version in set(versions.values()):
            keys = [(n, e.worker.incarnation) for n, e in entries.items() if versions.get(n) == version]
            pairs = [(self._begin[key], self._now[key]) for key in keys if key in self._now]
            requests = sum(now.requests - begin.requests for begin, now in pairs)
            failed = sum(now.failed - begin.failed for begin, now in pairs)
            found[version] = Health(int(requests), int(failed), _p95(pairs), probe)
        return found


def _p95(pairs: list[tuple[_Counts, _Counts]]) -> float:
    """Upper bound of the bucket that holds the 95th percentile; 0 when nothing was measured."""
    sums: dict[float, float] = {}
    for begin, now in pairs:
        for bound, count in now.ttft.items():
            sums[bound] = sums.get(bound, 0.0) + count - begin.ttft.get(bound, 0.0)
    total = max(sums.values(), default=0.0)
    return min((bound for bound, count in sums.items() if count >= 0.95 * total), default=0.0) if total else 0.0


async def _read(session: aiohttp.ClientSession, url: str) -> _Counts | None:
    try:
        async with session.get(f"{url}/metrics", timeout=_TIMEOUT) as response:
            text = await response.text()
    except (aiohttp.ClientError, TimeoutError):
        return None
    requests = failed = 0.0
    ttft: dict[float, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "baton_requests_total":
                requests += sample.value
                failed += sample.value if sample.labels.get("outcome") in _FAULTS else 0.0
            elif sample.name == "baton_time_to_first_token_seconds_bucket":
                ttft[float(sample.labels["le"])] = sample.value
    return _Counts(requests, failed, ttft)
