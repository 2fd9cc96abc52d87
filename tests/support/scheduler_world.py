"""A scheduler, the modelled device it drives, and everything a client or a peer may do to it."""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any

from support.kv_model import VOCABULARY, History, KVModel

from baton_serving.kv.layout import NULL_PAGE, KVGroup, KVLayout
from baton_serving.sampling.params import SamplingParams
from baton_serving.scheduling.config import SchedulerConfig
from baton_serving.scheduling.events import ChunkReady, Reservation, Snapshot, TokenOutput
from baton_serving.scheduling.request import LogprobOptions, Request, State
from baton_serving.scheduling.scheduler import Scheduler
from baton_serving.scheduling.step import StepPlan, StepResult


class Answer:
    """What a client got for one request."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.tokens = list(request.output)
        self.drawn_elsewhere = len(request.output)
        self.logprobs = 0
        self.prompt_logprobs: list[int] | None = None
        self.last: TokenOutput | None = None

    def take(self, output: TokenOutput) -> None:
        assert self.last is None, f"{output.rid} was answered after its terminal output"
        self.tokens += output.token_ids
        self.logprobs += len(output.logprobs)
        if output.prompt_logprobs is not None:
            assert self.prompt_logprobs is None
            self.prompt_logprobs = [entry.token_id for entry in output.prompt_logprobs]
        if output.finish is not None or output.failure is not None:
            self.last = output


class Arrival:
    """A request that a peer computes: reserved, written, then adopted or given up."""

    def __init__(self, request: Request, reservation: Reservation) -> None:
        self.request = request
        self.reservation = reservation


class Departure:
    """A request with announced pages: what must still be in them until the peer is done."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.pages: list[tuple[int, int, int, int]] = []  # KV group, page index, page, tokens
        self.snapshot: Snapshot | None = None


class World:
    """`check` after every call is what makes the properties: conservation, content, and page lifetimes."""

    def __init__(self, config: SchedulerConfig, layout: KVLayout, num_pages: int, depth: int) -> None:
        self.layout = layout
        self.depth = depth
        self.truncates = config.allow_auto_truncate
        self.now = 1.0
        self.scheduler = Scheduler(config, layout, num_pages, clock=lambda: self.now)
        self.model = KVModel(self.scheduler, layout)
        self.answers: dict[str, Answer] = {}
        self.flights: deque[tuple[StepPlan, StepResult]] = deque()
        self.arrivals: dict[str, Arrival] = {}
        self.departures: dict[str, Departure] = {}
        self.late_writers: dict[str, list[int]] = {}
        self.aborted: set[str] = set()
        self.local: set[str] = set()  # requests that came from clients, not from peers
        self.cut: dict[str, int] = {}  # by a stop string
        self.steps = 0
        self.last_plan: StepPlan  # the newest
        self._names = itertools.count()

    # Clients

    def request(
        self,
        prompt: list[int],
        *,
        namespace: str = "",
        logprob_start: int | None = None,
        handoff: bool = False,
        priority: int = 0,
        eos: int | None = None,
        resumed: int = 0,
        replay: bool = False,
        **params: Any,
    ) -> Request:
        """A request that nobody sent yet; another worker drew its first `resumed` tokens already."""
        logprobs = None if logprob_start is None else LogprobOptions(start=logprob_start, replay=replay)
        history = History(namespace, prompt)
        ends = {eos, *params.get("stop_token_ids", ())}
        for _ in range(0 if self.truncates else resumed):  # the other worker would have cut the prompt first
            if history.next_token() in ends:
                break
            history.append(history.next_token())
        return Request(
            f"r{next(self._names)}",
            prompt,
            SamplingParams(**params),
            namespace=namespace,
            logprobs=logprobs,
            handoff=handoff,
            priority=priority,
            eos_ids=frozenset() if eos is None else frozenset({eos}),
            output=history.tokens[len(prompt) :],
        )

    def like(self, request: Request, prompt: list[int]) -> Request:
        """A request that differs from `request` by its prompt alone."""
        return Request(
            f"r{next(self._names)}",
            prompt,
            request.params,
            namespace=request.namespace,
            logprobs=request.logprobs,
            eos_ids=request.eos_ids,
        )

    def add(self, request: Request) -> Request:
        self.answers[request.rid] = Answer(request)
        self.local.add(request.rid)
        self.scheduler.add(request)
        self._after()
        return request

    def abort(self, rid: str) -> None:
        self.aborted.add(rid)
        self.scheduler.abort(rid)
        self._after()

    def stop_string(self, rid: str) -> None:
        answer = self.answers[rid]
        if answer.tokens and answer.last is None and rid not in self.departures:
            self.cut[rid] = len(answer.tokens)
            self.scheduler.stop_found(rid, len(answer.tokens))
            self._after()

    # Steps

    def step(self, nan: bool = False) -> bool:
        """One turn of the loop at this world's depth; False when there was nothing to do."""
        plan = self.scheduler.schedule()
        self.now += 1.0
        if plan is not None:
            self.steps += 1
            self.last_plan = plan
            broken = frozenset({0}) if nan else frozenset()
            self.flights.append((plan, self.model.launch(plan, broken)))
        self._after()
        if self.flights and (len(self.flights) > self.depth or plan is None):
            self.commit()
            return True
        return plan is not None

    def commit(self) -> None:
        plan, result = self.flights.popleft()
        for output in self.scheduler.commit(plan, result):
            self.answers[output.rid].take(output)
        self.model.committed(plan.step)
        self._after()

    def run_out(self) -> None:
        """Let peers finish what they began, and run until nothing is left."""
        for _ in range(100_000):
            for rid in list(self.late_writers):
                self.unquarantine(rid)
            for rid in list(self.arrivals):
                self.adopt(rid)
            for rid in list(self.departures):
                self.handoff_done(rid)
            if not self.step():
                if self.scheduler.idle:
                    return
                assert self.departures or self.arrivals, "it hangs"
        raise AssertionError("it never ends")

    def flush(self) -> None:
        self.scheduler.flush_cache()
        self._after()

    # Peers, decode side

    def reserve(self, request: Request) -> bool:
        reservation = self.scheduler.reserve(request)
        if reservation is not None:
            self.answers[request.rid] = Answer(request)
            self.arrivals[request.rid] = Arrival(request, reservation)
        self._after()
        return reservation is not None

    def adopt(self, rid: str) -> None:
        """The peer wrote all pages and drew the first token."""
        arrival = self.arrivals.pop(rid)
        request = arrival.request
        self._write_arrival(arrival, len(request.prompt) + len(request.output))
        history = self.model.history(request)
        unsent = int(len(request.output) < request.limit)
        if unsent:
            history.append(history.next_token())
        self.scheduler.adopt(rid, history.tokens[len(request.prompt) :], unsent=unsent, logprobs=[])
        self._after()

    def give_up(self, rid: str, late: bool) -> None:
        """The peer failed; `late`: a write of its may still land."""
        arrival = self.arrivals.pop(rid)
        private = self.scheduler._kv.private_pages(arrival.request.page_list)
        name = self.scheduler.release_reservation(rid, quarantine=late)
        if late:
            assert name is not None
            self.late_writers[name] = private
        if rid not in self.aborted:
            del self.answers[rid]
        self._after()

    def unquarantine(self, name: str) -> None:
        self.model.spoil(self.late_writers.pop(name))
        self.scheduler.unquarantine(name)
        self._after()

    # Peers, prefill side

    def extract(self, rid: str) -> None:
        request = self.answers[rid].request
        if request.state is State.DECODE and self.scheduler.extract(rid):
            self._after()

    def move(self, rid: str) -> bool:
        """Hand a request that stands still over to this very worker, under a new name."""
        departure = self.departures[rid]
        snapshot, source = departure.snapshot, departure.request
        if snapshot is None or rid in self.aborted or self.answers[rid].last is not None:
            return False
        target = Request(
            f"{rid}+{next(self._names)}",
            [*snapshot.prompt_ids],
            source.params,
            namespace=source.namespace,
            eos_ids=source.eos_ids,
            logprobs=source.logprobs,
            output=snapshot.output_ids,
        )
        reservation = self.scheduler.reserve(target, snapshot.kv_tokens)
        if reservation is None:
            return False
        answer = self.answers[target.rid] = Answer(target)
        answer.tokens = snapshot.output_ids[: len(snapshot.output_ids) - snapshot.unsent]
        self._write_arrival(Arrival(target, reservation), snapshot.kv_tokens)
        self.scheduler.adopt(
            target.rid,
            snapshot.output_ids,
            unsent=snapshot.unsent,
            logprobs=snapshot.logprobs,
            prompt_logprobs=snapshot.prompt_logprobs,
        )
        self._after()
        return True

    def resume(self, rid: str) -> None:
        departure = self.departures.get(rid)
        if departure is not None and departure.snapshot is not None and departure.request.state is State.HANDING_OFF:
            del self.departures[rid]
            self.scheduler.handoff_cancelled(rid)
            self._after()

    def handoff_done(self, rid: str) -> None:
        departure = self.departures[rid]
        if departure.snapshot is not None or departure.request.state is State.LEAVING:
            self._check_departure(departure)
            del self.departures[rid]
            self.scheduler.handoff_done(rid)
            self._after()

    # What must always hold

    def _after(self) -> None:
        for output in self.scheduler.take_outputs():
            self.answers[output.rid].take(output)
        for event in self.scheduler.take_handoffs():
            self._note(event)
        self.scheduler.check()
        self.model.check_launched()
        for rid, departure in self.departures.items():
            assert departure.request.held is not None, f"the pages of {rid} were given back under their reader"

    def _note(self, event: ChunkReady | Snapshot) -> None:
        request = self.answers[event.rid].request
        departure = self.departures.setdefault(event.rid, Departure(request))
        if isinstance(event, Snapshot):
            departure.snapshot = event
            assert event.kv_tokens == len(request.prompt) + max(0, len(event.output_ids) - 1)
            if request.handoff:
                self._check_announced(departure)
            return
        for group, (first, pages) in enumerate(zip(event.first, event.pages, strict=True)):
            for index, page in enumerate(pages, first):
                assert page != NULL_PAGE
                assert event.last or (index + 1) * self.layout.page_size <= event.tokens
                departure.pages.append((group, index, page, event.tokens))
        self._check_departure(departure)

    def _check_announced(self, departure: Departure) -> None:
        """Every page that decoding after the prompt reads was announced, once."""
        assert departure.snapshot is not None
        tokens, size = departure.snapshot.kv_tokens, self.layout.page_size
        announced = sorted((group, index) for group, index, _, _ in departure.pages)
        assert len(set(announced)) == len(announced)
        for group, kind in enumerate(self.layout.groups):
            first = 0 if kind.window is None else max(0, tokens - kind.window + 1) // size
            needed = {(group, index) for index in range(first, -(-tokens // size))}
            assert needed <= set(announced)

    def _check_departure(self, departure: Departure) -> None:
        for group, index, page, tokens in departure.pages:
            assert self.model.holds(departure.request, group, index, page, tokens), "a page changed under its reader"

    def _write_arrival(self, arrival: Arrival, tokens: int) -> None:
        reservation = arrival.reservation
        for group, (first, pages) in enumerate(zip(reservation.first, reservation.pages, strict=True)):
            for index, page in enumerate(pages, first):
                self.model.fill(arrival.request, group, index, page, tokens)

    def check_answers(self) -> None:
        """Every request got one terminal output, and the tokens of the ideal model."""
        for rid, answer in self.answers.items():
            assert answer.last is not None, f"{rid} never ended"
            if answer.last.failure is not None:
                continue
            ideal, finish = self.ideal(answer.request, answer.drawn_elsewhere)
            kind = answer.last.finish.kind if answer.last.finish else ""
            if rid in self.aborted or rid in self.cut or kind == "handoff":
                assert answer.tokens == ideal[: len(answer.tokens)]
            else:
                assert answer.tokens == ideal
                assert kind == finish
                assert answer.last.completion_tokens == len(ideal)
                self._check_logprobs(answer)

    def _check_logprobs(self, answer: Answer) -> None:
        request = answer.request
        if request.logprobs is not None and request.rid in self.local:
            elsewhere, start = answer.drawn_elsewhere, request.logprobs.start
            assert answer.logprobs == len(answer.tokens) - elsewhere
            first = max(1, start) if start >= 0 else len(request.prompt)
            if request.logprobs.replay and len(answer.tokens) > elsewhere:  # else it ended at once
                assert answer.prompt_logprobs == [*request.prompt, *answer.tokens[:elsewhere]][first:]
            elif start >= 0 and not elsewhere:
                assert answer.prompt_logprobs == request.prompt[first:]

    def ideal(self, request: Request, drawn_elsewhere: int) -> tuple[list[int], str]:
        """Output and kind of end of the ideal model, alone in the world."""
        history = History(request.namespace, request.prompt)
        output: list[int] = []
        while len(output) < max(drawn_elsewhere, request.limit):
            token = history.next_token()
            history.append(token)
            output.append(token)
            done = len(output) > request.params.min_new_tokens and len(output) >= drawn_elsewhere
            if done and token in request.stop_ids:
                return output, "stop"
        return output, "length"


def small_world(
    *, pages: int = 40, page_size: int = 4, windows: tuple[int | None, ...] = (None,), depth: int = 0, **config: Any
) -> World:
    """A world of few pages; the other keywords are fields of `SchedulerConfig`."""
    groups = tuple(KVGroup((i,), window) for i, window in enumerate(windows))
    settings = {"context_len": 100, "max_running_requests": 4} | config
    return World(SchedulerConfig(**settings), KVLayout(page_size, 1, 4, 4, "float32", groups), pages, depth)


__all__ = ["VOCABULARY", "World", "small_world"]
