"""What routing remembers between requests: who holds which prompts, and how fast each worker computes.

Fed by decisions and by what comes back, corrected by what workers tell of their caches. No I/O and no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from baton_serving.gateway.policies.prefix_index import Match, PrefixIndex
from baton_serving.gateway.policies.prefix_keys import CUTS, header_value, prefix_keys, seed_of
from baton_serving.gateway.snapshot import Candidate, Held, RequestFacts

START_SPEED = 5_000.0  # prompt tokens a second, until the first answer has shown better
SMOOTHING = 0.2  # weight of the latest answer
MIN_SAMPLE = 64  # tokens: shorter waits say more of the network than of the worker
MAX_LAYOUTS = 64
MAX_MASKS = 4096

_NOTHING: tuple[list[int], list[Match]] = ([], [])


class _Layout:
    """What does not change while a tuple of candidates stands: their slots, by weights."""

    __slots__ = ("_index_of", "_indices", "candidates", "members")

    def __init__(self, candidates: Sequence[Candidate], slots: list[int]) -> None:
        self.candidates = candidates  # held, so that its id stays its own
        self.members: dict[str, int] = {}
        self._index_of = {slot: index for index, slot in enumerate(slots)}
        self._indices: dict[int, tuple[int, ...]] = {}  # beginnings that many share come again and again
        for slot, candidate in zip(slots, candidates, strict=True):
            self.members[candidate.weight_digest] = self.members.get(candidate.weight_digest, 0) | 1 << slot

    def indices(self, mask: int) -> tuple[int, ...]:
        """The candidates whose slots are in `mask`."""
        found = self._indices.get(mask)
        if found is None:
            if len(self._indices) >= MAX_MASKS:
                self._indices.clear()
            found = self._indices[mask] = tuple(self._index_of[slot] for slot in _bits(mask))
        return found


def _bits(mask: int) -> Iterator[int]:
    while mask:
        bit = mask & -mask
        yield bit.bit_length() - 1
        mask ^= bit


class Memory:
    """The `RoutingMemory` of one gateway process, or of the simulated gateway."""

    def __init__(self, index: PrefixIndex | None = None) -> None:
        self.index = PrefixIndex() if index is None else index
        self._layouts: dict[int, _Layout] = {}
        self._generation = -1
        self._seeds: dict[tuple[str, str], int] = {}
        self._cut: tuple[bytes | memoryview, int, list[int]] = (b"", 0, [])
        self._matched = _NOTHING  # of the keys matched last, until something changes
        self._speeds: dict[tuple[str, str], float] = {}

    # The view that policies have

    def held(self, facts: RequestFacts, candidates: Sequence[Candidate]) -> Sequence[Held]:
        """How much of the prompt caches are believed to hold, most first; who is in none of them holds nothing."""
        if len(facts.prompt) < CUTS[0]:
            return ()
        layout = self._layout(candidates)
        found: list[Held] = []
        for digest, members in layout.members.items():
            for count, mask in self._match(self.keys(facts, digest)):
                if mask & members:
                    tokens = CUTS[count - 1] * facts.prompt_tokens // len(facts.prompt)
                    found.append((tokens, layout.indices(mask & members)))
        if len(layout.members) > 1:
            found.sort(reverse=True)
        return found

    def _match(self, keys: list[int]) -> list[Match]:
        """For all workers at once, as both legs of a request ask."""
        known, matches = self._matched
        if known is not keys:
            matches = self.index.match(keys)
            self._matched = keys, matches
        return matches

    def speeds(self, candidates: Sequence[Candidate]) -> list[float]:
        """For each candidate the prompt tokens that it computes in a second, as its answers have shown."""
        known = self._speeds
        return [known.get((one.id, one.incarnation), START_SPEED) for one in candidates]

    def keys(self, facts: RequestFacts, digest: str) -> list[int]:
        """The keys of a prompt under these weights; those asked for last are kept."""
        name = facts.model, digest
        seed = self._seeds.get(name)
        if seed is None:
            if len(self._seeds) > 1000:
                self._seeds.clear()
            seed = self._seeds[name] = seed_of(*name)
        prompt, cut_seed, keys = self._cut
        if prompt is not facts.prompt or cut_seed != seed:
            keys = prefix_keys(facts.prompt, seed)
            self._cut = facts.prompt, seed, keys
        return keys

    def header(self, facts: RequestFacts, worker: Candidate) -> bytes:
        """What the worker is told of the prompt's keys; empty for a prompt that is too short to have any."""
        keys = self.keys(facts, worker.weight_digest)
        return header_value(keys, len(facts.prompt)) if keys else b""

    # What routing tells

    def routed(self, facts: RequestFacts, workers: Sequence[Candidate], now: float) -> None:
        """The prompt is on its way to these workers, all of the same weights, whose caches will hold it."""
        keys = self.keys(facts, workers[0].weight_digest)
        if keys:
            mask = 0
            for one in workers:
                mask |= 1 << self.index.slot((one.id, one.incarnation))
            self.index.sent(keys, mask, now)
            self._matched = _NOTHING

    def computed(self, worker: Candidate, tokens: int, seconds: float) -> None:
        """The worker's first token came `seconds` after the request, which had so many tokens before it to compute.

        These are the request's own uncached tokens and those queued there when it was sent.
        """
        if tokens < MIN_SAMPLE or seconds <= 0:
            return
        key = worker.id, worker.incarnation
        speed = tokens / seconds
        known = self._speeds.get(key, speed)
        self._speeds[key] = known + SMOOTHING * (speed - known)

    def forget(self, worker_id: str, incarnation: str) -> None:
        """The worker is gone."""
        self.index.leave((worker_id, incarnation))
        self._matched = _NOTHING
        self._speeds.pop((worker_id, incarnation), None)

    # What workers tell

    def holds(self, worker_id: str, incarnation: str, keys: Iterable[int]) -> None:
        """A snapshot: the worker's cache holds just these."""
        self.index.replace((worker_id, incarnation), keys)
        self._matched = _NOTHING

    def changed(self, worker_id: str, incarnation: str, stored: Sequence[int], removed: Sequence[int]) -> None:
        """What entered and what left the worker's cache since its last word."""
        self.index.changed((worker_id, incarnation), stored, removed)
        self._matched = _NOTHING

    def silent(self, worker_id: str, incarnation: str) -> None:
        """The worker's stream of cache events broke: decisions stand in for it until it tells again."""
        self.index.silent((worker_id, incarnation))

    def _layout(self, candidates: Sequence[Candidate]) -> _Layout:
        if self._generation != self.index.generation:
            self._layouts.clear()
            self._generation = self.index.generation
        found = self._layouts.get(id(candidates))
        if found is None or found.candidates is not candidates:
            slots = [self.index.slot((one.id, one.incarnation)) for one in candidates]
            found = _Layout(candidates, slots)
            if len(self._layouts) >= MAX_LAYOUTS:
                self._layouts.clear()
            if isinstance(candidates, tuple):
                self._layouts[id(candidates)] = found
            self._generation = self.index.generation
        return found
