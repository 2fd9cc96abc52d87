"""The simulation: a trace goes through the gateway's door and policies to workers that take the time they cost."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from baton_serving.errors import QueueFull
from baton_serving.gateway.admission.door import Door, DoorConfig
from baton_serving.gateway.policies import POLICIES
from baton_serving.gateway.policies.memory import Memory
from baton_serving.gateway.simulate.trace import Trace
from baton_serving.gateway.simulate.worker import BlockCache, Costs, Job, SimWorker
from baton_serving.gateway.snapshot import Policy, RequestFacts, Snapshot

MODEL = "simulated"
POLL = 0.01  # seconds between two looks at the door's queue while nothing ends


@dataclass(frozen=True)
class Shape:
    """How many workers of which kind. With `prefill` 0 each of `decode` serves whole requests."""

    prefill: int = 4
    decode: int = 4
    costs: Costs = field(default_factory=Costs)
    events: bool = True  # workers tell what their caches hold; without, the gateway goes by its own decisions


class Simulation:
    """One run of one pair of policies. `finished` is called with each job that ended or was refused.

    Workers may `join` and `leave` while it runs; with no pair there, requests wait for `worker_wait` seconds.
    """

    def __init__(
        self,
        trace: Trace,
        shape: Shape,
        prefill_policy: str,
        decode_policy: str,
        door: DoorConfig,
        finished: Callable[[Job], None],
        worker_wait: float = 1.0,
    ) -> None:
        self._trace = trace
        self._shape = shape
        self._policies: tuple[Policy, Policy] = (POLICIES[prefill_policy], POLICIES[decode_policy])
        self._door = Door(door)
        self._memory = Memory()
        self._finished = finished
        self._worker_wait = worker_wait
        self._unrouted: list[Job] = []  # no worker is there for them
        self._joined = 0
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._serial = 0
        self._held: dict[int, Job] = {}  # at the door
        self._facts: dict[int, RequestFacts] = {}
        self._polling = False
        self._progress: Callable[[int], None] = lambda done: None
        self.prefills = self._workers("prefill", shape.prefill)
        self.decodes = self._workers("decode", shape.decode)

    def run(self, progress: Callable[[int], None] = lambda done: None) -> None:
        """To the end of the last request. `progress` hears now and then how many have come to the door."""
        for number, request in enumerate(self._trace.requests):
            self.at(request.at, lambda now, number=number: self._arrive(number, now))  # type: ignore[misc]
        self._progress = progress
        while self._events:
            now, _, act = heapq.heappop(self._events)
            act(now)

    def _workers(self, role: str, count: int) -> tuple[SimWorker, ...]:
        width = len(str(max(0, count - 1)))
        return tuple(self._make(f"{role}-{n:0{width}d}") for n in range(count))

    def _make(self, name: str) -> SimWorker:
        worker = SimWorker(name, self._shape.costs, BlockCache(self._trace.block_tokens))
        if self._shape.events:
            self._memory.holds(worker.id, worker.incarnation, ())
        return worker

    def join(self, role: str, now: float) -> SimWorker:
        """A new worker of this role takes requests from now on, first those that wait for one."""
        self._joined += 1
        worker = self._make(f"{role}-new-{self._joined:05d}")
        worker.restart(now)
        if role == "prefill":
            self.prefills = (*self.prefills, worker)
        else:
            self.decodes = (*self.decodes, worker)
        waiting, self._unrouted = self._unrouted, []
        for job in waiting:
            self._route(job, now)
        return worker

    def leave(self, worker: SimWorker, now: float) -> None:
        """The worker gets no more requests, and ends those that it has."""
        self.prefills = tuple(one for one in self.prefills if one is not worker)
        self.decodes = tuple(one for one in self.decodes if one is not worker)

    def change_role(self, worker: SimWorker, now: float) -> None:
        """The worker gets requests of the other role from now on, and ends those that it has."""
        was_prefill = any(one is worker for one in self.prefills)
        self.leave(worker, now)
        if was_prefill:
            self.decodes = (*self.decodes, worker)
        else:
            self.prefills = (*self.prefills, worker)

    def settle(self, now: float) -> None:
        """Let every worker's books be of this moment."""
        for worker in (*self.prefills, *self.decodes):
            before = worker.version
            self._settle(worker, now)
            if worker.version != before:
                self._plan(worker)

    @property
    def waiting(self) -> int:
        """Requests for which no worker is there."""
        return len(self._unrouted)

    def at(self, when: float, act: Callable[[float], None]) -> None:
        """Call `act(when)` then."""
        self._serial += 1
        heapq.heappush(self._events, (when, self._serial, act))

    # The gateway

    def _arrive(self, number: int, now: float) -> None:
        request = self._trace.requests[number]
        facts = RequestFacts(
            number=number,
            model=MODEL,
            prompt=request.prompt(self._trace.block_tokens),
            prompt_tokens=request.prompt_tokens,
            max_tokens=request.output_tokens,
            session=request.session,
        )
        job = Job(number, request, self._memory.keys(facts, "w"), now)
        if number % 256 == 0:
            self._progress(number)
        try:
            admitted = self._door.offer(facts, now)
        except QueueFull:
            job.refused = True
            self._finished(job)
            return
        self._facts[number] = facts
        if admitted:
            self._route(job, now)
        else:
            self._held[number] = job
            self._look(now)

    def _look(self, now: float) -> None:
        """Let in who may come in, refuse whom the door sheds, and look again while some wait."""
        for number in self._door.shed(now):
            job = self._held.pop(number)
            job.refused = True
            self._end(job, now, 0)
        for number in self._door.admit(now):
            self._route(self._held.pop(number), now)
        if self._held and not self._polling:
            self._polling = True
            self.at(now + POLL, self._poll)

    def _poll(self, now: float) -> None:
        self._polling = False
        self._look(now)

    def _route(self, job: Job, now: float) -> None:
        facts = self._facts[job.number]
        if not self.decodes or (self._shape.prefill and not self.prefills):
            self._unrouted.append(job)
            self.at(job.arrived + self._worker_wait, lambda then: self._give_up(job, then))
            return
        if self.prefills:
            job.prefill, job.believed = self._choose(self._policies[0], self.prefills, facts, now)
            job.prefill.running += 1
        job.decode, believed = self._choose(self._policies[1], self.decodes, facts, now)
        job.decode.running += 1
        first = job.prefill
        if first is None:
            first, job.believed = job.decode, believed
        first.queued_tokens += job.request.prompt_tokens - job.believed
        first.waiting.append(job)
        self._start_prefill(first, now)

    def _give_up(self, job: Job, now: float) -> None:
        if job in self._unrouted:
            self._unrouted.remove(job)
            job.refused = True
            self._end(job, now, 0)

    def _choose(
        self, policy: Policy, workers: tuple[SimWorker, ...], facts: RequestFacts, now: float
    ) -> tuple[SimWorker, int]:
        choice = policy(Snapshot(workers, self._memory, now), facts)
        worker = workers[choice.index]
        self._memory.routed(facts, (worker,), now)
        return worker, min(choice.cached, facts.prompt_tokens)

    def _end(self, job: Job, now: float, tokens: int) -> None:
        job.ended = now
        del self._facts[job.number]
        self._door.leave(job.number, tokens, now)
        self._finished(job)

    # The workers

    def _start_prefill(self, worker: SimWorker, now: float) -> None:
        if not worker.prefilling:
            self._settle(worker, now)
            seconds = worker.take_prefill_batch()
            if seconds is not None:
                self.at(now + seconds, lambda then: self._prefilled(worker, seconds, then))

    def _prefilled(self, worker: SimWorker, seconds: float, now: float) -> None:
        jobs, worker.prefilling = worker.prefilling, []
        worker.restart(now)
        ahead = sum(job.request.prompt_tokens - job.cached for job in jobs)
        self._memory.computed(worker, ahead, seconds)
        for job in jobs:
            worker.queued_tokens -= job.request.prompt_tokens - job.believed
            worker.computed(job, self._tell)
            if worker is job.decode:
                self._first_token(job, now)
            else:
                worker.running -= 1
                assert job.decode is not None
                there = min(job.decode.cache.match(job.request.blocks), job.request.prompt_tokens - 1)
                costs = self._shape.costs
                delay = costs.transfer + (job.request.prompt_tokens - there) * costs.transfer_token
                self.at(now + delay, lambda then, job=job: self._arrived(job, then))  # type: ignore[misc]
        self._start_prefill(worker, now)
        self._plan(worker)

    def _arrived(self, job: Job, now: float) -> None:
        assert job.decode is not None
        job.decode.computed(job, self._tell)
        self._first_token(job, now)
        self._plan(job.decode)

    def _first_token(self, job: Job, now: float) -> None:
        worker = job.decode
        assert worker is not None
        job.first_token = now
        if job.request.output_tokens == 1:
            self._leave(job, worker, now)
            return
        self._settle(worker, now)
        worker.join(job, now, self._tell)

    def _settle(self, worker: SimWorker, now: float) -> None:
        """Whoever has ended by now leaves the worker."""
        ended = worker.progress(now)
        for job in ended:
            self._leave(job, worker, now)
        if ended:
            worker.restart(now)

    def _leave(self, job: Job, worker: SimWorker, now: float) -> None:
        worker.running -= 1
        self._end(job, now, job.request.prompt_tokens + job.request.output_tokens)
        self._look(now)

    def _plan(self, worker: SimWorker) -> None:
        """Wake up when the next job of the batch ends, unless the batch changes before."""
        when = worker.next_end()
        if when is None:
            return
        version = worker.version

        def wake(now: float) -> None:
            if worker.version == version:
                self._settle(worker, now)
                self._plan(worker)

        self.at(when, wake)

    def _tell(self, worker: SimWorker, stored: Sequence[int], removed: Sequence[int]) -> None:
        if self._shape.events:
            self._memory.changed(worker.id, worker.incarnation, stored, removed)
