"""Policies that score workers and take the lowest score; of equal scores the one that the request's number picks.

In a small fleet every worker is scored. In a large one so many are that the best of them is hardly worse than the best
of all (Mitzenmacher 2001): some drawn by the request's number, and some of those that hold most of its prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from baton_serving.gateway.policies.simple import mix
from baton_serving.gateway.snapshot import Candidate, Choice, Held, RequestFacts, Snapshot

SMALL_FLEET = 16  # workers that are all scored
DRAWN = 8  # workers of a larger fleet that are scored for no other reason than chance
HOLDERS = 8  # workers of a larger fleet that are scored because they hold some of the prompt
CACHED_WEIGHT = 4  # of a cached token: it saves this request's time, and the worker's for the next ones
REQUEST_TOKENS = 64  # what a running request weighs beside its KV: a row in each step


def least_load(snapshot: Snapshot, facts: RequestFacts) -> Choice:
    """The least tokens: prompts that wait to be computed, KV in use, and a weight for each running request."""
    considered = _considered(len(snapshot.candidates), facts.number, ())
    candidates = snapshot.candidates
    return _lowest([load(candidates[index]) for index in considered], considered, facts.number)


def cache_aware(snapshot: Snapshot, facts: RequestFacts) -> Choice:
    """The least tokens once the request is there: the load, and what of the prompt the worker's cache does not hold."""
    candidates = snapshot.candidates
    held = snapshot.memory.held(facts, candidates)
    considered = _considered(len(candidates), facts.number, held)
    if not held:
        return _lowest([load(candidates[index]) for index in considered], considered, facts.number)
    cached = _by_index(held)
    scores = [load(candidates[index]) - CACHED_WEIGHT * cached.get(index, 0) for index in considered]
    return _lowest(scores, considered, facts.number, cached)


def least_ttft(snapshot: Snapshot, facts: RequestFacts) -> Choice:
    """The earliest first token, predicted: prompt tokens before it, over the speed that the worker's answers showed."""
    candidates = snapshot.candidates
    held = snapshot.memory.held(facts, candidates)
    considered = _considered(len(candidates), facts.number, held)
    cached = _by_index(held)
    workers = [candidates[index] for index in considered]
    scores = [
        (one.queued_tokens + one.running * REQUEST_TOKENS + facts.prompt_tokens - cached.get(index, 0)) / speed
        for index, one, speed in zip(considered, workers, snapshot.memory.speeds(workers), strict=True)
    ]
    return _lowest(scores, considered, facts.number, cached)


def load(one: Candidate) -> int:
    """Tokens that stand between a worker and a new request."""
    return one.queued_tokens + one.used_tokens + one.running * REQUEST_TOKENS


def _considered(count: int, number: int, held: Sequence[Held]) -> Sequence[int]:
    """Indices of the workers to score, each once."""
    if count <= SMALL_FLEET:
        return range(count)
    drawn = mix(number)
    step = count // DRAWN
    considered = [(drawn + step * turn) % count for turn in range(DRAWN)]
    room = HOLDERS
    for _, holders in held:
        at = number % len(holders)
        some = (holders[at:] + holders[:at])[:room] if len(holders) > room else holders
        considered.extend([index for index in some if index not in considered])
        room -= len(some)
        if room <= 0:
            break
    return considered


def _by_index(held: Sequence[Held]) -> dict[int, int]:
    return {index: tokens for tokens, holders in held for index in holders}


def _lowest(
    scores: Sequence[float], considered: Sequence[int], number: int, cached: Mapping[int, int] | None = None
) -> Choice:
    """The lowest score; among several as low as it, an even draw by `number`."""
    least = min(scores)
    at = scores.index(least)
    ties = scores.count(least)
    for _ in range(mix(number) % ties if ties > 1 else 0):
        at = scores.index(least, at + 1)
    index = considered[at]
    return Choice(index, tuple(scores), considered, cached.get(index, 0) if cached else 0)
