"""New workers beside the old ones: both roles move in matched proportions, and an old one goes when it is replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from baton_operator.rollout.invariant import serving
from baton_operator.rollout.model import Policy, Seen, Target, Worker


@dataclass(frozen=True)
class Surge:
    """Workers wanted by role and version, and who ends now."""

    counts: Mapping[tuple[str, str], int]
    stops: frozenset[str]


def plan_surge(goal: str, target: Target, seen: Seen, policy: Policy, stable: str, percent: int) -> Surge:
    """The next counts on the way to `goal`, of which at most `percent` of the workers may run for now."""
    counts: dict[tuple[str, str], int] = {}
    share = _share(goal, target, seen)
    stops: list[Worker] = []
    for role, wanted in target.counts.items():
        new = [worker for worker in seen.workers if worker.role == role and worker.version == goal]
        old = [worker for worker in seen.workers if worker.role == role and worker.version != goal]
        room = wanted + policy.surge.get(role, 0) - len(old)
        limit = min(wanted, -(-wanted * percent // 100))
        counts[role, goal] = min(limit, max(len(new), room)) if old else wanted
        kept = max(0, _ceil(wanted * (1 - share)) - policy.unavailable.get(role, 0))
        kept = max(1, kept) if share < 1 else 0
        if percent < 100:
            kept = max(kept, wanted - limit)
        gone = sorted(old, key=lambda worker: (worker.ready, worker.version == stable, -worker.order))
        stops += gone[: max(0, len(old) - kept)]
        stops += sorted(new, key=lambda worker: -worker.order)[: max(0, len(new) - wanted)]
    others = {worker.role for worker in seen.workers} - set(target.counts)
    if share >= 1:
        stops += [worker for worker in seen.workers if worker.role in others]
    safe = _as_far_as_safe(stops, seen)
    for worker in seen.workers:
        if worker.version != goal and worker.id not in safe:
            key = worker.role, worker.version
            counts[key] = counts.get(key, 0) + 1
    return Surge(counts, safe)


def _share(goal: str, target: Target, seen: Seen) -> float:
    """How much of the goal stands, by its scarcer role; nothing before gateways send requests there."""
    if goal not in seen.admitted:
        return 0.0
    ready = {
        role: sum(worker.ready and worker.role == role and worker.version == goal for worker in seen.workers)
        for role in target.counts
    }
    return min((ready[role] / count for role, count in target.counts.items() if count), default=1.0)


def _as_far_as_safe(stops: Sequence[Worker], seen: Seen) -> frozenset[str]:
    """As many of `stops`, in order, as leave a serving set that gateways send requests to."""
    going: set[str] = set()
    for worker in stops:
        if not worker.ready or serving(seen.workers, without={*going, worker.id}, among=seen.admitted):
            going.add(worker.id)
    return frozenset(going)


def _ceil(value: float) -> int:
    return int(-(-value // 1))
