"""Collects the rows of the step that is being planned."""

from __future__ import annotations

from baton_serving.kv.radix import Node
from baton_serving.scheduling.request import Request
from baton_serving.scheduling.step import LogprobRow, PageWrite, SlotSetup, StepPlan


class Flight:
    """A launched step: its plan, the request of each row, and tree nodes pinned until its copies are done."""

    __slots__ = ("pinned", "plan", "requests")

    def __init__(self, plan: StepPlan, requests: list[Request], pinned: list[Node]) -> None:
        self.plan = plan
        self.requests = requests
        self.pinned = pinned


class Outgoing:
    """Changes to the executors' slot tables that go out with the next plan.

    No entry of a table is set twice in one plan: what was due for a slot is forgotten when the slot is freed.
    """

    __slots__ = ("page_writes", "setups")

    def __init__(self) -> None:
        self.setups: list[SlotSetup] = []
        self.page_writes: list[PageWrite] = []

    def set_up(self, request: Request) -> None:
        """Begin the slot's life: parameters, tokens so far, and all pages held."""
        params = request.params
        self.setups.append(
            SlotSetup(
                slot=request.slot,
                params=params,
                prompt=list(request.prompt) if params.repetition_penalty != 1.0 else [],
                output=list(request.output),
                eos_token_ids=sorted(request.eos_ids),
            )
        )
        self.write_pages(request, 0)

    def forget(self, slot: int) -> None:
        self.setups = [setup for setup in self.setups if setup.slot != slot]
        self.page_writes = [write for write in self.page_writes if write.slot != slot]

    def write_pages(self, request: Request, start: int) -> None:
        """Enter the request's pages from page index `start` on."""
        held = request.page_list
        if start < held.count:
            for group, pages in enumerate(held.pages):
                self.page_writes.append(PageWrite(request.slot, group, start, pages[start:]))


class StepBuilder:
    """Rows of step number `step`; every row moves its request's counters on."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.requests: list[Request] = []
        self.extend_tokens = 0
        self.pinned: list[Node] = []
        self._starts: list[int] = []
        self._lengths: list[int] = []
        self._extend: list[int] = []
        self._sample: list[int] = []
        self._tokens: list[int] = []
        self._copies: list[tuple[int, int]] = []
        self._logprobs: list[LogprobRow] = []
        self._embed: list[int] = []

    def copy(self, source: Node, targets: list[int]) -> None:
        """Copy the pages of a tree node into `targets` (by KV group); the node is pinned until the step is over."""
        self._copies.extend(zip(source.pages, targets, strict=True))
        self.pinned.append(source)

    def decode(self, requests: list[Request]) -> None:
        """One row each for requests whose next page, if they need one, is there."""
        step = self.step
        rows = len(requests)
        starts = self._starts
        for row, request in enumerate(requests, len(starts)):
            start = request.computed
            starts.append(start)
            request.computed = start + 1
            request.planned += 1
            request.last_step = step
            if request.logprobs is not None:
                self._ask_logprobs(request, row, start + 1, True)
        self.requests += requests
        self._lengths += [1] * rows
        self._extend += [0] * rows
        self._sample += [1] * rows

    def extend(self, request: Request, length: int, sample: bool) -> None:
        """The next `length` tokens of a request whose tokens are known; their pages are there."""
        start = request.computed
        end = start + length
        self._starts.append(start)
        self._lengths.append(length)
        self._extend.append(1)
        self._sample.append(int(sample))
        self._tokens += request.tokens(start, end)
        self.extend_tokens += length
        if request.logprobs is not None:
            self._ask_logprobs(request, len(self.requests), end, sample)
        if request.embed and end == request.goal:
            self._embed.append(len(self.requests))
        self.requests.append(request)
        request.computed = end
        request.planned += int(sample)
        request.last_step = self.step

    def build(self, outgoing: Outgoing) -> Flight:
        """The step, with the slot changes that are due; `outgoing` is empty afterwards."""
        plan = StepPlan(
            step=self.step,
            slots=[request.slot for request in self.requests],
            starts=self._starts,
            lengths=self._lengths,
            extend=self._extend,
            tokens=self._tokens,
            sample=self._sample,
            setups=outgoing.setups,
            page_writes=outgoing.page_writes,
            copies=self._copies,
            logprobs=self._logprobs,
            embed=self._embed,
        )
        outgoing.setups = []
        outgoing.page_writes = []
        return Flight(plan, self.requests, self.pinned)

    def _ask_logprobs(self, request: Request, row: int, end: int, sample: bool) -> None:
        """`end`: tokens of the request computed after this row. The token at `end` is predicted by this row, too."""
        options = request.logprobs
        assert options is not None
        wanted = request.logprob_planned
        prompt = request.prompt_logprobs is not None and wanted <= min(end, request.logprob_end - 1)
        next_token = request.tokens(end, end + 1)[0] if prompt and end < request.logprob_end else -1
        if prompt:
            request.logprob_planned = end + 1
        if prompt or sample:
            self._logprobs.append(
                LogprobRow(row, options.top, wanted if prompt else -1, list(options.token_ids), next_token)
            )
