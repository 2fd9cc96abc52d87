"""Policies that look at nothing but the number of the request and the load of the workers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from baton_serving.gateway.snapshot import Choice, RequestFacts, Snapshot


def round_robin(snapshot: Snapshot, facts: RequestFacts) -> Choice:
    """In turn."""
    return Choice(facts.number % len(snapshot.candidates))


def random(snapshot: Snapshot, facts: RequestFacts) -> Choice:
    """Any one, drawn by a hash of the number."""
    return Choice(mix(facts.number) % len(snapshot.candidates))


def power_of_two(snapshot: Snapshot, facts: RequestFacts) -> Choice:
    """The less loaded of two drawn by a hash of the number (Mitzenmacher 2001); the first drawn when they are level."""
    candidates = snapshot.candidates
    count = len(candidates)
    if count == 1:
        return Choice(0)
    drawn = mix(facts.number)
    first = drawn % count
    second = (first + 1 + (drawn >> 32) % (count - 1)) % count
    one, other = candidates[second], candidates[first]
    running, others = one.running, other.running
    less = running < others or (running == others and one.queued_tokens < other.queued_tokens)
    return Choice(second if less else first)


def weighted(shares: Mapping[str, int], number: int) -> str:
    """One of the names, as often as its share of the sum says, by a hash of `number`."""
    names = sorted(shares)
    drawn = mix(number) % max(1, sum(shares.values()))
    for name in names:
        drawn -= shares[name]
        if drawn < 0:
            return name
    return names[-1]


@lru_cache(maxsize=8)  # each leg of a request asks
def mix(number: int) -> int:
    """A 64-bit hash whose bits all depend on all bits of `number`: the finaliser of SplitMix64."""
    mask = (1 << 64) - 1
    number = (number * 0x9E3779B97F4A7C15) & mask
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & mask
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & mask
    return number ^ (number >> 31)
