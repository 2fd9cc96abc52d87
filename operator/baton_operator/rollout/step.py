"""`step`: one look at everything, one step further."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from baton_operator.rollout import in_place
from baton_operator.rollout.invariant import serving, serving_sets
from baton_operator.rollout.model import (
    Health,
    Memory,
    Order,
    Phase,
    Policy,
    Seen,
    Stage,
    Step,
    Strategy,
    Target,
    Worker,
)
from baton_operator.rollout.surge import plan_surge

_CLOCK_RUNS = (Phase.STAGING, Phase.MOVING, Phase.ROLLING_BACK)


def step(target: Target, policy: Policy, seen: Seen, memory: Memory) -> Step:
    """What to do now, and what to remember.

    Rolls back when the new weights are refused, a gate of `policy` fails or the deadline passes; then stays so until
    another version is wanted.
    """
    memory = _remember(target, policy, seen, memory)
    there = {worker.id for worker in seen.workers}
    seen = replace(seen, workers=tuple(worker for worker in seen.workers if worker.id not in memory.leaving))
    if memory.phase in (Phase.STAGING, Phase.MOVING, Phase.PAUSED) and memory.goal != memory.stable:
        reason = _failure(policy, seen, memory)
        if reason:
            memory = _roll_back(memory, reason)
    moves = _surge if policy.strategy is Strategy.SURGE else _in_place
    planned = moves(target, policy, seen, memory)
    new = {worker for worker, order in planned.orders.items() if order is Order.STOP}
    leaving = frozenset((memory.leaving & there) | new)
    orders = {**planned.orders, **dict.fromkeys(leaving, Order.STOP)}
    return replace(planned, orders=orders, memory=replace(planned.memory, leaving=leaving))


def _remember(target: Target, policy: Policy, seen: Seen, memory: Memory) -> Memory:
    """Take note of the time, and of another version being wanted."""
    elapsed = max(0.0, seen.now - memory.at) if memory.phase in _CLOCK_RUNS else 0.0
    memory = replace(memory, at=seen.now, spent=memory.spent + elapsed)
    if not memory.stable:
        return replace(memory, stable=target.version, version=target.version, phase=Phase.DONE)
    if target.version == memory.version:
        if policy.paused and memory.phase in (Phase.STAGING, Phase.MOVING):
            return replace(memory, phase=Phase.PAUSED, reason="paused by its manifest")
        return memory
    fresh = Memory(phase=Phase.STAGING, stable=memory.stable, version=target.version, at=seen.now, moved_at=seen.now)
    return replace(fresh, moving=memory.moving, leaving=memory.leaving)


def _failure(policy: Policy, seen: Seen, memory: Memory) -> str:
    """Why the new version must not go on, or ""."""
    if policy.undone:
        return "undone by hand"
    if found := in_place.trouble(memory.goal, seen):
        return found
    health = seen.health.get(memory.goal, Health())
    if health.probe is False:
        return "the probe was not answered as expected"
    if health.requests >= policy.min_requests:
        if health.failed / health.requests > policy.max_error_rate:
            return f"{health.failed} of {health.requests} requests failed"
        if health.ttft > policy.max_ttft:
            return f"the time to first token is {health.ttft:.2f} s, more than {policy.max_ttft:g} s"
    if memory.spent > policy.deadline:
        return f"not done within {policy.deadline:g} s"
    return ""


def _roll_back(memory: Memory, reason: str) -> Memory:
    return replace(memory, phase=Phase.ROLLING_BACK, failed=memory.version, reason=reason, spent=0.0)


def _in_place(target: Target, policy: Policy, seen: Seen, memory: Memory) -> Step:
    goal = memory.goal
    by_id = {worker.id: worker for worker in seen.workers}
    left = frozenset(i for i in memory.moving if i in by_id and not _arrived(by_id[i], goal))
    gone = frozenset(i for i in memory.moving if i not in by_id)
    if memory.moving and not left and not gone:
        memory = replace(memory, moved_at=seen.now)
    memory = replace(memory, moving=left)
    message = ""
    if not left and all(worker.version == goal for worker in seen.workers):
        memory, message = _settled(target, policy, seen, memory)
    elif left:
        message = f"{', '.join(sorted(left))} change to {goal}"
    else:
        memory, message = _pick(policy, seen, memory)
    whole = in_place.whole_workers(goal, seen, memory.moving)
    orders = in_place.orders(goal, seen, memory.moving)
    if memory.phase is Phase.FAILED:
        orders = dict.fromkeys(orders, Order.KEEP)
    counts, stops = _scaled(target, seen, memory)
    orders.update(dict.fromkeys(stops, Order.STOP))
    return _result(policy, seen, memory, orders, whole, counts, message)


def _arrived(worker: Worker, goal: str) -> bool:
    """Whether a worker that was told to change serves the goal, and nothing that it was told before can move it."""
    return worker.version == goal == worker.heard and worker.ready and worker.stage is Stage.SERVING


def _pick(policy: Policy, seen: Seen, memory: Memory) -> tuple[Memory, str]:
    """Choose the next group, unless something must be waited for."""
    goal = memory.goal
    if memory.phase is Phase.FAILED:
        return memory, memory.reason
    waiting = in_place.unstaged(goal, seen)
    if waiting:
        if memory.phase is Phase.ROLLING_BACK and (found := in_place.trouble(goal, seen)):
            return replace(memory, phase=Phase.FAILED, reason=f"{memory.reason}; and going back failed: {found}"), found
        return memory, f"{', '.join(waiting)} read the weights of {goal}"
    held = _held_up(policy, seen, memory)
    if held:
        return replace(memory, phase=_paused_or(memory, held)), held
    try:
        group, why = in_place.next_group(goal, seen)
    except in_place.NoWay as error:
        return _roll_back(memory, str(error)), str(error)
    if not group:
        return memory, why
    phase = Phase.ROLLING_BACK if memory.phase is Phase.ROLLING_BACK else Phase.MOVING
    return replace(memory, phase=phase, moving=group), f"{', '.join(sorted(group))} change to {goal}"


def _surge(target: Target, policy: Policy, seen: Seen, memory: Memory) -> Step:
    goal = memory.goal
    message = ""
    held = _held_up(policy, seen, memory)
    percent = policy.canary if not memory.promoted and goal != memory.stable else 100
    before = {worker.id for worker in seen.workers if worker.version != goal}
    if held and before:
        memory = replace(memory, phase=_paused_or(memory, held))
        counts, stops = _scaled(target, seen, memory, policy.surge)
        orders = {worker.id: Order.STOP if worker.id in stops else Order.KEEP for worker in seen.workers}
        return _result(policy, seen, memory, orders, frozenset(), counts, held)
    surge = plan_surge(goal, target, seen, policy, memory.stable, percent)
    orders = {worker.id: Order.STOP if worker.id in surge.stops else Order.KEEP for worker in seen.workers}
    if memory.phase in (Phase.STAGING, Phase.PAUSED) and before:
        memory = replace(memory, phase=Phase.MOVING)
    if surge.stops:
        memory = replace(memory, moved_at=seen.now)
    standing = all(
        sum(w.ready and w.role == role and w.version == goal for w in seen.workers) >= count
        for role, count in target.counts.items()
    )
    if standing and not before:
        memory, message = _settled(target, policy, seen, memory)
    else:
        message = _surge_story(goal, target, seen, surge.stops)
    return _result(policy, seen, memory, orders, frozenset(), surge.counts, message)


def _surge_story(goal: str, target: Target, seen: Seen, stops: frozenset[str]) -> str:
    if stops:
        return f"{', '.join(sorted(stops))} end, {goal} has taken their place"
    ready = {
        role: sum(w.ready and w.role == role and w.version == goal for w in seen.workers) for role in target.counts
    }
    standing = ", ".join(f"{ready[role]} of {count} {role}" for role, count in target.counts.items())
    waits = "" if goal in seen.admitted or not any(ready.values()) else "; gateways do not send requests there yet"
    return f"{standing} workers of {goal} are ready{waits}"


def _settled(target: Target, policy: Policy, seen: Seen, memory: Memory) -> tuple[Memory, str]:
    """Every worker serves the goal."""
    if memory.phase in (Phase.DONE, Phase.FAILED):
        return memory, memory.reason
    if memory.phase is Phase.ROLLING_BACK:
        return replace(memory, phase=Phase.FAILED), f"back at {memory.goal}: {memory.reason}"
    waits = _soaking(policy, seen, memory)
    if waits:
        return memory, waits
    done = replace(memory, phase=Phase.DONE, stable=memory.version, reason="", spent=0.0, promoted=False)
    return done, f"{memory.version} serves"


def _held_up(policy: Policy, seen: Seen, memory: Memory) -> str:
    """Why no further worker may move now, or ""."""
    if memory.phase in (Phase.ROLLING_BACK, Phase.FAILED, Phase.DONE):
        return ""
    if policy.paused:
        return "paused by its manifest"
    sets = serving_sets(seen.workers)
    new, every = sets.get(memory.goal, 0), sum(sets.values())
    if new and (waits := _soaking(policy, seen, memory)):
        return waits
    canary = policy.canary if memory.goal != memory.stable and not memory.promoted else 100
    if canary < 100 and every and 100 * new >= canary * every:
        return f"{100 * new // every}% of the serving sets are of {memory.goal}: promote it, or undo"
    return ""


def _paused_or(memory: Memory, held: str) -> Phase:
    """Waiting for a person is a phase of its own; soaking is part of moving."""
    return Phase.PAUSED if held.startswith("paused") or held.endswith("undo") else Phase.MOVING


def _soaking(policy: Policy, seen: Seen, memory: Memory) -> str:
    if policy.probe and memory.goal != memory.stable and seen.health.get(memory.goal, Health()).probe is None:
        return f"asks {memory.goal} the probe"
    left = policy.soak - (seen.now - memory.moved_at)
    return f"watches {memory.goal} for {left:.0f} s more" if left > 0 else ""


def _as_they_are(seen: Seen) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for worker in seen.workers:
        counts[worker.role, worker.version] = counts.get((worker.role, worker.version), 0) + 1
    return counts


def _scaled(
    target: Target, seen: Seen, memory: Memory, beside: Mapping[str, int] | None = None
) -> tuple[dict[tuple[str, str], int], frozenset[str]]:
    """Numbers of workers as wanted: newcomers begin with what is known to serve, leavers leave a serving set.

    `beside`: so many more of a role may stay.
    """
    counts = _as_they_are(seen)
    stops: set[str] = set()
    if not {worker.role for worker in seen.workers} <= target.counts.keys():
        return counts, frozenset()  # the roles themselves change: that is for the roll
    goal = memory.goal
    begin = goal if any(worker.version == goal and worker.ready for worker in seen.workers) else memory.stable
    for role in target.counts:
        workers = [worker for worker in seen.workers if worker.role == role]
        surplus = len(workers) - target.counts.get(role, 0)
        if surplus < 0:
            counts[role, begin] = counts.get((role, begin), 0) - surplus
        leaving = sorted(workers, key=lambda worker: (worker.ready, worker.version == goal, -worker.order))
        for worker in leaving[: max(0, surplus - (beside or {}).get(role, 0))]:
            without = {*stops, *memory.moving, worker.id}
            if not worker.ready or serving(seen.workers, without=without, among=seen.admitted):
                stops.add(worker.id)
                counts[role, worker.version] -= 1
    return counts, frozenset(stops)


def _result(
    policy: Policy,
    seen: Seen,
    memory: Memory,
    orders: dict[str, Order],
    whole: frozenset[str],
    counts: Mapping[tuple[str, str], int],
    message: str,
) -> Step:
    shares: dict[str, int] = {}
    moving = memory.phase in (Phase.STAGING, Phase.MOVING, Phase.PAUSED) and memory.goal != memory.stable
    if moving and policy.canary < 100 and not memory.promoted:
        shares = {memory.goal: policy.canary}
        shares.update({w.version: 100 - policy.canary for w in seen.workers if w.version != memory.goal})
    probe = ""
    if policy.probe and moving and memory.goal in serving_sets(seen.workers):
        probe = memory.goal if seen.health.get(memory.goal, Health()).probe is None else ""
    return Step(memory.goal, orders, whole, counts, shares, memory, message, probe)
