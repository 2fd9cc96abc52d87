"""Which worker holds which beginnings of prompts, as far as a gateway can know: bounded, and never asked over a wire.

Three sources, each a table from prefix key to a set of workers (a bit mask over slots):

- *known*: what workers with an event stream say that they hold;
- *recent*: where requests were sent a moment ago, until such a worker's events have told;
- *lasting*: where requests were sent, for workers that have no event stream.

A worker that holds a prompt holds all its beginnings, so the longest held one is found by bisection. Where that is not
so (a table lost old entries) some shorter beginning is found: an estimate, which costs time and never correctness.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

CAPACITY = 1 << 19  # keys in each half of a table, some 50 MB
RECENT_SECONDS = 15.0  # for a request to be computed and for the worker to say so
MAX_LEVELS = 16  # lengths told apart for one prompt
MAX_DEAD = 64  # slots of lost workers before the tables are swept

Match = tuple[int, int]  # how many keys are held, and by which workers (mask)


class HalfLife:
    """A mapping that forgets the half least recently written or refreshed when it is full, in constant time a call."""

    __slots__ = ("_capacity", "new", "old")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.new: dict[int, int] = {}
        self.old: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.new) + len(self.old)

    def add(self, keys: Iterable[int], mask: int) -> None:
        """Add workers to the keys."""
        new, old = self.new, self.old
        for key in keys:
            new[key] = new.get(key, 0) | (old.pop(key, 0) if old else 0) | mask
        if len(new) >= self._capacity:
            self.age()

    def extend(self, keys: Sequence[int], mask: int) -> None:
        """Add workers to the beginnings of one prompt, shortest first. Who holds one holds those before it."""
        new, old = self.new, self.old
        for key in reversed(keys):
            held = new.get(key, 0)
            if held & mask == mask:
                break
            new[key] = held | (old.pop(key, 0) if old else 0) | mask
        if len(new) >= self._capacity:
            self.age()

    def discard(self, keys: Iterable[int], mask: int) -> None:
        """Take workers off the keys."""
        for table in (self.new, self.old):
            for key in keys:
                held = table.get(key)
                if held is not None and held & mask:
                    if held & ~mask:
                        table[key] = held & ~mask
                    else:
                        del table[key]

    def age(self) -> None:
        self.old, self.new = self.new, {}

    def sweep(self, mask: int) -> None:
        """Keep only workers of `mask`; O(keys)."""
        self.old = {key: held & mask for key, held in self.old.items() if held & mask}
        self.new = {key: held & mask for key, held in self.new.items() if held & mask}


class PrefixIndex:
    """Workers are known by any key of the caller's; `join` gives each a slot, the number of its bit."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._known = HalfLife(capacity)
        self._recent = HalfLife(capacity)
        self._lasting = HalfLife(capacity)
        self._slots: dict[Hashable, int] = {}
        self._free: list[int] = []
        self._dead: list[int] = []
        self._live = 0
        self._telling = 0  # workers with an event stream
        self._aged = 0.0
        self.generation = 0  # changes whenever a worker's slot does

    def __len__(self) -> int:
        return len(self._known) + len(self._recent) + len(self._lasting)

    def slot(self, worker: Hashable) -> int:
        """The worker's slot, a new one at first sight."""
        found = self._slots.get(worker)
        if found is None:
            found = self._free.pop() if self._free else len(self._slots) + len(self._dead)
            self._slots[worker] = found
            self._live |= 1 << found
        return found

    def leave(self, worker: Hashable) -> None:
        """Forget a worker and all that it held."""
        slot = self._slots.pop(worker, None)
        if slot is None:
            return
        self.generation += 1
        self._live &= ~(1 << slot)
        self._telling &= ~(1 << slot)
        self._dead.append(slot)
        if len(self._dead) >= MAX_DEAD:
            for table in (self._known, self._recent, self._lasting):
                table.sweep(self._live)
            self._free, self._dead = self._free + self._dead, []

    # What workers say

    def replace(self, worker: Hashable, keys: Iterable[int]) -> int:
        """A worker with an event stream holds just these; returns its slot, which is a new one."""
        self.leave(worker)
        slot = self.slot(worker)
        self._telling |= 1 << slot
        self._known.add(keys, 1 << slot)
        return slot

    def changed(self, worker: Hashable, stored: Sequence[int], removed: Sequence[int]) -> None:
        """What left the worker's cache and then what entered it; nothing is believed of a worker that is gone."""
        slot = self._slots.get(worker)
        if slot is None:
            return
        self._known.discard(removed, 1 << slot)
        self._recent.discard(removed, 1 << slot)
        self._known.add(stored, 1 << slot)

    def silent(self, worker: Hashable) -> None:
        """Its event stream broke: what it said stands until `replace`, and where requests go is noted again."""
        slot = self._slots.get(worker)
        if slot is not None:
            self._telling &= ~(1 << slot)

    # What the gateway does

    def sent(self, keys: Sequence[int], mask: int, now: float) -> None:
        """A prompt with these beginnings, shortest first, was sent to these workers.

        `now` in seconds on any clock that only this method sees.
        """
        if now - self._aged > RECENT_SECONDS:
            self._aged = now
            self._recent.age()
        telling = mask & self._telling
        if telling:
            self._recent.extend(keys, telling)
        if mask & ~telling:
            self._lasting.extend(keys, mask & ~telling)

    def match(self, keys: Sequence[int]) -> list[Match]:
        """Who holds how much, longest first; each worker is in one match at most."""
        within = self._live
        tables = self._tables()
        found: list[Match] = []
        high = len(keys)
        while high and within and len(found) < MAX_LEVELS:
            low = held = 0
            while low < high:
                middle = (low + high + 1) >> 1
                key = keys[middle - 1]
                there = 0
                for table in tables:
                    there |= table.get(key, 0)
                if there & within:
                    low, held = middle, there & within
                else:
                    high = middle - 1
            if not low:
                break
            found.append((low, held))
            within &= ~held
            high = low - 1
        return found

    def _tables(self) -> list[dict[int, int]]:
        known, recent, lasting = self._known, self._recent, self._lasting
        halves = (known.new, known.old, recent.new, recent.old, lasting.new, lasting.old)
        return [half for half in halves if half]
