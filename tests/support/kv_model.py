"""An executor that holds no tensors: it models what every KV cell contains, and so notices a wrong page at once.

A cell (page, offset) contains what its KV would be computed from: the namespace and the hash of all tokens up to its
position. A query must find exactly that at every position it sees, whichever way the pages were shared, copied,
moved or used again.
"""

from __future__ import annotations

from typing import NamedTuple

from baton_serving.kv.allocator import RADIX
from baton_serving.kv.layout import NULL_PAGE, KVLayout
from baton_serving.kv.manager import RequestPages
from baton_serving.scheduling.builder import Flight
from baton_serving.scheduling.request import Request
from baton_serving.scheduling.scheduler import Scheduler
from baton_serving.scheduling.step import StepPlan, StepResult, TokenLogprobs

VOCABULARY = 7
Cell = tuple[int, str, int]  # KV group, namespace, hash of all tokens up to here


class History:
    """All tokens of a request, as they were really drawn, with the hash of every prefix."""

    def __init__(self, namespace: str, prompt: list[int]) -> None:
        self.namespace = namespace
        self.tokens: list[int] = []
        self.hashes: list[int] = []
        for token in prompt:
            self.append(token)

    def append(self, token: int) -> None:
        self.tokens.append(token)
        self.hashes.append(hash((self.hashes[-1] if self.hashes else 0, token)))

    def next_token(self) -> int:
        """The ideal model: the next token follows from the whole history."""
        return hash((self.namespace, self.hashes[-1])) % VOCABULARY


class Touched(NamedTuple):
    """A page that a launched step reads, writes or copies, and who held it (None: the tree)."""

    page: int
    held: RequestPages | None


class KVModel:
    """Runs plans at the time they are launched, in order, like one stream of a device."""

    def __init__(self, scheduler: Scheduler, layout: KVLayout) -> None:
        self._scheduler = scheduler
        self._layout = layout
        self.cells: dict[tuple[int, int], Cell] = {}
        self._tables: dict[tuple[int, int], dict[int, int]] = {}
        self._histories: dict[int, History] = {}
        self._live: list[Request] = []  # keeps identities of `_histories` valid
        self._last: dict[int, int] = {}
        self._launched: dict[int, list[Touched]] = {}

    def history(self, request: Request) -> History:
        found = self._histories.get(id(request))
        if found is None:
            found = self._histories[id(request)] = History(request.namespace, request.prompt + request.output)
            self._live.append(request)
        return found

    def launch(self, plan: StepPlan, broken: frozenset[int] = frozenset()) -> StepResult:
        """Run one step, asserting that every query sees what it should; rows in `broken` report NaN."""
        flight = self._scheduler._roster.flights[-1]
        assert flight.plan is plan
        self._prepare(plan)
        inputs = self._inputs(flight)
        for row, request in enumerate(flight.requests):
            for position in range(plan.starts[row], plan.starts[row] + plan.lengths[row]):
                self._write(request, plan.slots[row], position, inputs[row][position - plan.starts[row]])
        self._launched[plan.step] = [Touched(source, None) for source, _ in plan.copies]
        for row, request in enumerate(flight.requests):
            self._read(request, plan, row)
        result = StepResult(plan.step, [-1] * plan.rows, nan_rows=sorted(broken))
        self._sample(flight, result)
        return result

    def committed(self, step: int) -> None:
        del self._launched[step]

    def check_launched(self) -> None:
        """No page of a step that is not over yet was given to anybody else, or set free."""
        pool = self._scheduler._kv.pool
        for touched in self._launched.values():
            for page, held in touched:
                assert pool.owner(page) in (held, RADIX), f"page {page} of a launched step went to another owner"

    def fill(self, request: Request, group: int, index: int, page: int, tokens: int) -> None:
        """Write page index `index` of a request's first `tokens` tokens, as a peer would."""
        history = self.history(request)
        size = self._layout.page_size
        for position in range(index * size, min(tokens, (index + 1) * size)):
            self.cells[page, position - index * size] = (group, history.namespace, history.hashes[position])

    def holds(self, request: Request, group: int, index: int, page: int, tokens: int) -> bool:
        """Whether `page` contains page index `index` of the request's first `tokens` tokens."""
        history = self.history(request)
        size = self._layout.page_size
        return all(
            self.cells.get((page, p - index * size)) == (group, history.namespace, history.hashes[p])
            for p in range(index * size, min(tokens, (index + 1) * size))
        )

    def spoil(self, pages: list[int]) -> None:
        """A late remote write."""
        for page in pages:
            for offset in range(self._layout.page_size):
                self.cells[page, offset] = (-1, "late", 0)

    def _prepare(self, plan: StepPlan) -> None:
        for source, target in plan.copies:
            assert target != NULL_PAGE
            for offset in range(self._layout.page_size):
                if (source, offset) in self.cells:
                    self.cells[target, offset] = self.cells[source, offset]
        seen = set()
        for write in plan.page_writes:
            table = self._tables.setdefault((write.slot, write.group), {})
            for i, page in enumerate(write.pages, write.start):
                assert (write.slot, write.group, i) not in seen, "a table entry is set twice in one plan"
                seen.add((write.slot, write.group, i))
                table[i] = page
        assert len({setup.slot for setup in plan.setups}) == len(plan.setups)
        for setup in plan.setups:
            if setup.output:
                self._last[setup.slot] = setup.output[-1]

    def _inputs(self, flight: Flight) -> list[list[int]]:
        """Input tokens by row: given ones as given, decode rows from what the slot drew last."""
        plan = flight.plan
        assert len(set(plan.slots)) == plan.rows, "a slot has two rows"
        at = 0
        inputs = []
        for row, request in enumerate(flight.requests):
            start, length = plan.starts[row], plan.lengths[row]
            assert length > 0
            if plan.extend[row]:
                tokens = plan.tokens[at : at + length]
                at += length
            else:
                assert length == 1
                tokens = [self._last[plan.slots[row]]]
            assert tokens == self.history(request).tokens[start : start + length]
            inputs.append(tokens)
        assert at == len(plan.tokens)
        return inputs

    def _write(self, request: Request, slot: int, position: int, token: int) -> None:
        history = self.history(request)
        size = self._layout.page_size
        for group in range(len(self._layout.groups)):
            page = self._tables[slot, group][position // size]
            assert page != NULL_PAGE
            owner = self._scheduler._kv.pool.owner(page)
            assert owner is request.held, f"{request.rid} writes into a page of {owner.name}"
            self.cells[page, position % size] = (group, history.namespace, history.hashes[position])

    def _read(self, request: Request, plan: StepPlan, row: int) -> None:
        history = self.history(request)
        size = self._layout.page_size
        start, end = plan.starts[row], plan.starts[row] + plan.lengths[row]
        held = request.held
        assert held is not None
        for group, kind in enumerate(self._layout.groups):
            table = self._tables[plan.slots[row], group]
            first = 0 if kind.window is None else max(0, start - kind.window + 1)
            for position in range(first, end):
                cell = self.cells.get((table[position // size], position % size))
                expected = (group, history.namespace, history.hashes[position])
                assert cell == expected, f"{request.rid} reads foreign KV at {position} of group {group}"
            pages = {table[position // size] for position in range(first, end)}
            self._launched[plan.step] += [Touched(page, held) for page in pages]

    def _sample(self, flight: Flight, result: StepResult) -> None:
        plan = flight.plan
        ends = [start + length for start, length in zip(plan.starts, plan.lengths, strict=True)]
        for asked in plan.logprobs:
            history = self.history(flight.requests[asked.row])
            end = ends[asked.row]
            if asked.prompt_from >= 0:
                assert plan.starts[asked.row] < asked.prompt_from
                targets = history.tokens[asked.prompt_from : end]
                if asked.next_token >= 0:
                    assert history.tokens[end] == asked.next_token
                    targets = [*targets, asked.next_token]
                result.prompt_logprobs[asked.row] = [TokenLogprobs(token, -1.0) for token in targets]
        for row, request in enumerate(flight.requests):
            if plan.sample[row]:
                history = self.history(request)
                assert len(history.tokens) == ends[row], "a token is drawn before its predecessor is known"
                token = history.next_token()
                history.append(token)
                self._last[plan.slots[row]] = token
                result.tokens[row] = token
        for asked in plan.logprobs:
            if plan.sample[asked.row]:
                result.logprobs[asked.row] = TokenLogprobs(result.tokens[asked.row], -1.0)
