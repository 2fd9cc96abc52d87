"""From two looks at the workers: what is asked of the fleet, and what one worker can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from baton_operator.autoscaling.memory import Memory
from baton_operator.autoscaling.model import Fleet, Targets
from baton_operator.planner.observed import WorkerReport

_TAIL = 3.0  # the 99th percentile of the time to the first token in mean waits; ln 100 for a single worker's queue
_LEAST_USE, _MOST_USE = 0.4, 0.92  # part of its time that a worker may compute prompts, whatever is measured
_CRESTS = 0.86  # part of the aim that means over a period may reach, since they hide the crests within it
_KEEP = 0.95  # requests change their size faster than workers their speed
_LEAST_ANSWERED = 1e-6  # requests that are answered at a time; fewer tell nothing about one
_FULL = 0.05  # with less of the pages free, more is asked for than can be seen


@dataclass(frozen=True)
class Demand:
    """`prompts` and `answers` are tokens a second: uncached ones that arrive, and those that are put out.

    `prompts_each` and `answers_each` are what one worker can do while the aims are kept; `answers_each` is infinite
    while nothing is known. `backlog` is the workers that it takes, beside the others, to catch up with what waits.
    """

    prompts: float
    answers: float
    prompts_each: float
    answers_each: float
    backlog: float
    idle: bool


def measure(memory: Memory, fleet: Fleet, targets: Targets, now: float) -> tuple[Demand | None, Memory]:
    """What is asked since the last look; None at the first one, or while no worker has computed anything."""
    prompt_side = [one for one in fleet.workers if one.role != "decode"] if fleet.divided else list(fleet.workers)
    answer_side = [one for one in fleet.workers if one.role != "prefill"]
    queued = sum(one.queued_tokens for one in prompt_side)
    seen = {one.id: one for one in fleet.workers}
    before, after = memory, replace(memory, at=now, seen=seen, queued=queued)
    if before.at is None or now <= before.at:
        return None, after
    seconds = now - before.at
    done = [_since(before.seen.get(one.id), one) for one in prompt_side]
    tokens, computing = sum(one.prompt_tokens for one in done), sum(one.prompt_seconds for one in done)
    after = replace(after, rate=before.rate.add(tokens, computing))
    rate = after.rate.value
    use = min(1.0, computing / (seconds * max(1, _ready(prompt_side))))
    if rate and 0 < use < 0.98:
        wait = queued / (rate * max(1, _ready(prompt_side)))
        after = replace(after, crowding=before.crowding.add(wait, use / (1 - use)))
    told = [_since(before.seen.get(one.id), one) for one in answer_side]
    put_out, waited = sum(one.answer_tokens for one in told), sum(one.answer_seconds for one in told)
    former = [one for one in before.seen.values() if one.role != "prefill"]
    pages = (_pages(former) + _pages(answer_side)) / 2
    if put_out and waited > _LEAST_ANSWERED * seconds and pages > 0:
        slowest = max(one.answer_seconds / one.answer_tokens for one in told if one.answer_tokens)
        after = replace(
            after,
            pace=before.pace.add(2 * pages / max(1, _ready(former) + _ready(answer_side)), waited / put_out),
            pages=before.pages.add(pages, waited / seconds, _KEEP),
            unevenness=before.unevenness.add(slowest * put_out / waited, 1.0),
        )
    idle = not (tokens or put_out or queued or fleet.waiting)
    if not rate:
        return None, after
    demand = Demand(
        prompts=max(0.0, tokens + queued - before.queued) / seconds,
        answers=put_out / seconds * (1.3 if _full(answer_side) else 1.0),
        prompts_each=rate * _use(after, targets),
        answers_each=_answers_each(after, targets, answer_side),
        backlog=queued / rate / targets.ttft,
        idle=idle,
    )
    return demand, after


def _since(before: WorkerReport | None, now: WorkerReport) -> WorkerReport:
    """What the worker did since `before`; a worker whose counters went back has started anew."""
    if before is None or now.prompt_tokens < before.prompt_tokens or now.answer_tokens < before.answer_tokens:
        return now
    return replace(
        now,
        prompt_tokens=now.prompt_tokens - before.prompt_tokens,
        prompt_seconds=max(0.0, now.prompt_seconds - before.prompt_seconds),
        answer_tokens=now.answer_tokens - before.answer_tokens,
        answer_seconds=max(0.0, now.answer_seconds - before.answer_seconds),
    )


def _ready(workers: Sequence[WorkerReport]) -> int:
    return sum(one.state == "ready" for one in workers)


def _pages(workers: Sequence[WorkerReport]) -> int:
    return sum(one.total_pages - one.free_pages for one in workers)


def _full(workers: Sequence[WorkerReport]) -> bool:
    total = sum(one.total_pages for one in workers)
    return total > 0 and sum(one.free_pages for one in workers) < _FULL * total


def _use(memory: Memory, targets: Targets) -> float:
    """The use at which waits, which grow as ρ/(1-ρ), just keep the aim at the 99th percentile."""
    crowding = memory.crowding.value
    if crowding is None:
        return (_LEAST_USE + _MOST_USE) / 2
    return min(_MOST_USE, max(_LEAST_USE, 1 / (1 + _TAIL * crowding / targets.ttft)))


def _answers_each(memory: Memory, targets: Targets, workers: Sequence[WorkerReport]) -> float:
    """Tokens a second of a worker that is as full as the aims allow: with so many pages, at the pace that goes with it.

    Not with the pages that are in use now: requests that get their tokens late hold theirs for longer.
    """
    per_request = memory.pages.value
    if not per_request:
        return inf
    aim = _CRESTS * targets.tpot / (memory.unevenness.value or 1.0)
    room = targets.pages * max((one.total_pages for one in workers), default=0)
    pages = max(per_request, min(room or inf, memory.pace.reaches(aim)))
    return pages / per_request / max(1e-6, memory.pace.at(pages))
