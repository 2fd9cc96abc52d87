"""How a worker is chosen: pure functions over a snapshot of candidates, so that a simulator can run them too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """What a policy may look at: requests on their way or running, and uncached prompt tokens waiting."""

    @property
    def running(self) -> int: ...

    @property
    def queued_tokens(self) -> int: ...


C = TypeVar("C", bound=Candidate)


def round_robin(candidates: Sequence[C], ticket: int) -> C:
    """In turn. `ticket` is the number of the choice; equal tickets choose alike."""
    return candidates[ticket % len(candidates)]


def power_of_two(candidates: Sequence[C], ticket: int) -> C:
    """The less loaded of two drawn by a hash of `ticket` (Mitzenmacher 2001); the first drawn when they are level."""
    count = len(candidates)
    if count == 1:
        return candidates[0]
    drawn = _mix(ticket)
    first = drawn % count
    second = (first + 1 + (drawn >> 32) % (count - 1)) % count
    one, other = candidates[first], candidates[second]
    return other if _load(other) < _load(one) else one


def weighted(shares: Mapping[str, int], ticket: int) -> str:
    """One of the names, as often as its share of the sum says, by a hash of `ticket`."""
    names = sorted(shares)
    total = sum(shares.values())
    drawn = _mix(ticket) % max(1, total)
    for name in names:
        drawn -= shares[name]
        if drawn < 0:
            return name
    return names[-1]


def _load(candidate: Candidate) -> tuple[int, int]:
    return candidate.running, candidate.queued_tokens


def _mix(number: int) -> int:
    """A 64-bit hash whose bits all depend on all bits of `number`: the finaliser of SplitMix64."""
    mask = (1 << 64) - 1
    number = (number * 0x9E3779B97F4A7C15) & mask
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & mask
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & mask
    return number ^ (number >> 31)


class Policy(Protocol):
    """Chooses one of `candidates`, which are never empty."""

    def __call__(self, candidates: Sequence[C], ticket: int) -> C: ...


POLICIES: Mapping[str, Policy] = {"round_robin": round_robin, "power_of_two": power_of_two}
