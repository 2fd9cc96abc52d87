"""Changing workers where they run, a serving set at a time.

With one set, its decode workers serve whole while its prefill workers change, and then the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence

from baton_operator.rollout.invariant import serving
from baton_operator.rollout.model import DECODE, PREFILL, WHOLE, Order, Seen, Stage, Worker


class NoWay(Exception):
    """It cannot be done without a gap; the message says why and what would help."""


def orders(goal: str, seen: Seen, moving: frozenset[str]) -> dict[str, Order]:
    """For each worker: those of another version have `goal` at hand, those of the moving group serve it.

    Of the group, those that still serve may not leave when others that were counted on have gone meanwhile.
    """
    found = {}
    safe = serving(seen.workers, without=moving, among=seen.admitted)
    for worker in seen.workers:
        if worker.version == goal:
            found[worker.id] = Order.KEEP
        else:
            goes = worker.id in moving and (safe or not worker.ready)
            found[worker.id] = Order.SWITCH if goes else Order.STAGE
    return found


def trouble(goal: str, seen: Seen) -> str:
    """What is wrong with the new weights, as workers found, or ""."""
    staged: dict[str, str] = {}
    for worker in seen.workers:
        if worker.heard == goal and worker.stage is Stage.FAILED:
            return f"{worker.id}: {worker.error}"
        if worker.version != goal and worker.heard == goal and worker.stage is Stage.STAGED:
            staged[worker.digest] = worker.id
    if len(staged) > 1:
        (one, first), (other, second) = list(staged.items())[:2]
        return f"{first} read weights of digest {one[:12]}, {second} of {other[:12]}: they see different checkpoints"
    return ""


def unstaged(goal: str, seen: Seen) -> list[str]:
    """Workers that have yet to read the new weights."""
    return [
        worker.id
        for worker in seen.workers
        if worker.version != goal and not (worker.heard == goal and worker.stage is Stage.STAGED)
    ]


def whole_workers(goal: str, seen: Seen, moving: frozenset[str]) -> frozenset[str]:
    """Prefill workers of the goal that serve whole because no decode worker of theirs is there yet.

    Not while one is about to come and others serve meanwhile: they would be told so for a moment only.
    """
    decodes = [worker for worker in seen.workers if worker.role == DECODE]
    coming = any(worker.id in moving for worker in decodes)
    others = any(worker.id not in moving and worker.ready for worker in decodes)
    if any(worker.version == goal and worker.ready for worker in decodes) or (coming and others):
        return frozenset()
    return frozenset(worker.id for worker in seen.workers if worker.role == PREFILL and worker.version == goal)


def next_group(goal: str, seen: Seen) -> tuple[frozenset[str], str]:
    """Who changes next, and if nobody can for now, why. Raises `NoWay` when nobody ever can."""
    old = sorted((worker for worker in seen.workers if worker.version != goal), key=lambda worker: worker.order)
    group = frozenset(worker.id for worker in _candidates(old, seen.workers))
    if serving(seen.workers, without=group, among=seen.admitted):
        return group, ""
    return frozenset(), "waits until gateways send requests to the others"


def _candidates(old: Sequence[Worker], everyone: Sequence[Worker]) -> Sequence[Worker]:
    prefills = [worker for worker in old if worker.role == PREFILL]
    decodes = [worker for worker in old if worker.role == DECODE]
    wholes = [worker for worker in old if worker.role == WHOLE]
    if wholes:
        if len(everyone) == 1:
            raise NoWay(
                "a single worker that serves whole cannot be changed in place without a gap; use strategy: Surge"
            )
        return wholes[:1]
    sets = min(sum(worker.role == role for worker in everyone) for role in (PREFILL, DECODE))
    remaining = min(len(prefills), len(decodes))
    if sets >= 2 and remaining:
        return [*prefills[: -(-len(prefills) // remaining)], *decodes[: -(-len(decodes) // remaining)]]
    return prefills or decodes[:1]
