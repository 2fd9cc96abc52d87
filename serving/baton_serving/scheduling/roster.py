"""Where every request is, and how it leaves: the state that the planners share.

Nothing is given back while a launched step contains the request or a peer may touch its pages: a request that is off
the batch stays in `off_batch` until both are over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from baton_serving.errors import InternalError
from baton_serving.kv.manager import KVManager
from baton_serving.scheduling.admission import NewTokenRatio, PageEstimate
from baton_serving.scheduling.builder import Flight, Outgoing
from baton_serving.scheduling.config import SchedulerConfig
from baton_serving.scheduling.events import Failure, Finish, HandoffEvent, Snapshot, TokenOutput
from baton_serving.scheduling.policy import retraction_order
from baton_serving.scheduling.queue import WaitingQueue
from baton_serving.scheduling.request import Event, Request, State
from baton_serving.scheduling.step import TokenLogprobs


class Roster:
    def __init__(self, config: SchedulerConfig, kv: KVManager, clock: Callable[[], float]) -> None:
        self.config = config
        self.kv = kv
        self.clock = clock
        self.estimate = PageEstimate(kv, config.chunked_prefill_size)
        self.ratio = NewTokenRatio(config.schedule_conservativeness)
        self.max_tokens = min(config.context_len, self.estimate.largest_request())
        self.requests: dict[str, Request] = {}  # accepted or reserved, and not yet both answered and unpinned
        self.queue = WaitingQueue(config.schedule_policy, config.max_queued_requests, config.random_seed)
        self.prefilling: list[Request] = []  # admitted, some of the prompt not planned yet
        self.running: list[Request] = []  # the next row is a decode row
        self.joining: list[Request] = []
        self.reserved: list[Request] = []
        self.off_batch: list[Request] = []
        self.unpublished: list[Request] = []  # their prompts are on their way into the tree
        self.slots = list(range(config.max_running_requests - 1, -1, -1))  # free ones
        self.flights: deque[Flight] = deque()
        self.next_step = 0
        self.committed = -1
        self.outgoing = Outgoing()
        self.outputs: list[TokenOutput] = []
        self.handoffs: list[HandoffEvent] = []
        self.retractions = 0
        self.prompt_tokens = 0  # of admitted requests …
        self.cached_tokens = 0  # … and how many of them came from the tree
        self.pages_returned = True  # something may be admitted now that could not before

    @property
    def active(self) -> list[Request]:
        """Admitted requests that still need steps."""
        return self.running + self.prefilling + self.joining

    # Ends

    def end(
        self,
        request: Request,
        finish: Finish | None = None,
        failure: Failure | None = None,
        tokens: Sequence[int] = (),
        logprobs: Sequence[TokenLogprobs] = (),
        embedding: list[float] | None = None,
    ) -> None:
        """Put out the terminal output, with the last tokens, and let the request go as soon as it may."""
        request.timings.finished = self.clock()
        self.outputs.append(
            TokenOutput(
                rid=request.rid,
                token_ids=list(tokens),
                prompt_tokens=len(request.prompt),
                cached_tokens=max(0, request.cached),
                completion_tokens=request.sent,
                logprobs=list(logprobs),
                prompt_logprobs=request.take_prompt_logprobs(),
                finish=finish,
                failure=failure,
                timings=request.timings,
                embedding=embedding,
            )
        )
        request.ended = True
        request.ended_badly = failure is not None
        self._detach(request)
        request.advance(Event.END)
        if request.held is None:
            self._drop(request)
            return
        if not request.pinned_by_peer:
            self.requests.pop(request.rid, None)
        if request not in self.off_batch:
            self.off_batch.append(request)

    def retract(self, request: Request) -> None:
        """Take a request off the batch and back to the queue; its KV stays in the tree as far as there is room."""
        self._detach(request)
        request.advance(Event.RETRACT)
        request.retracted = True
        self.retractions += 1
        self.off_batch.append(request)
        self.ratio.after_retraction(self.active)
        self.settle()

    def retract_for(self, pages: int) -> bool:
        """Retract until `pages` more pages can be had, now or when launched steps are over; False when nobody can."""
        if any(request.last_step > self.committed for request in self.off_batch):
            return False  # pages are about to come back: see then
        candidates = [request for request in self.running + self.prefilling if not request.pinned_by_peer]
        coming = 0
        retracted = False
        for i in retraction_order([request.running_view() for request in candidates]):
            if self.kv.available + coming >= pages:
                break
            victim = candidates[i]
            if victim.last_step > self.committed:
                coming += victim.page_list.count * self.kv.groups
            self.retract(victim)
            retracted = True
        return retracted

    def retract_one(self) -> bool:
        """Retract whoever gives way first; False when there is nobody."""
        candidates = [request for request in self.running + self.prefilling if not request.pinned_by_peer]
        if not candidates:
            return False
        self.retract(candidates[retraction_order([request.running_view() for request in candidates])[0]])
        return True

    def abandon(self, request: Request) -> None:
        """Forget a reservation without a terminal output."""
        self._detach(request)
        self._drop(request)

    def stop(self, request: Request) -> None:
        """Take a request off the batch to hand it over."""
        self._detach(request)
        request.advance(Event.STOP)
        self.off_batch.append(request)

    def settle(self) -> None:
        """Let go of the requests off the batch whose last launched step is over."""
        if not self.off_batch:
            return
        waiting: list[Request] = []
        for request in self.off_batch:
            if request.last_step > self.committed:
                waiting.append(request)
            elif request.state is State.RETRACTING:
                self._requeue(request)
            elif request.state is State.STOPPING:
                self._hand_over(request)
            elif request.pinned_by_peer:
                waiting.append(request)
            else:
                self._drop(request)
        self.off_batch = waiting

    def unpin(self, request: Request) -> None:
        """No peer touches the request's pages any more."""
        request.pinned_by_peer = False
        if request.state is State.LEAVING:
            self.requests.pop(request.rid, None)
            self.settle()

    # Parts

    def _detach(self, request: Request) -> None:
        request.unpublished = False
        for group in (self.running, self.prefilling, self.joining, self.reserved, self.unpublished):
            if request in group:
                group.remove(request)
        if request.state is State.WAITING:
            self.queue.remove(request)

    def _drop(self, request: Request) -> None:
        request.advance(Event.DROP)
        if self.requests.get(request.rid) is request:  # the name may be in use again
            del self.requests[request.rid]
        self._give_back(request)

    def _requeue(self, request: Request) -> None:
        self._give_back(request)
        request.advance(Event.QUIET)
        request.set_goal()
        self.queue.push(request)

    def _hand_over(self, request: Request) -> None:
        request.advance(Event.QUIET)
        request.pinned_by_peer = True
        self._free_slot(request)
        unsent = len(request.output) - request.sent
        self.handoffs.append(
            Snapshot(
                rid=request.rid,
                prompt_ids=request.prompt,
                output_ids=list(request.output),
                kv_tokens=request.kv,
                pages=[list(pages) for pages in request.page_list.pages],
                cached_tokens=max(0, request.cached),
                unsent=unsent,
                logprobs=request.output_logprobs,
                prompt_logprobs=request.prompt_logprobs,
            )
        )

    def _give_back(self, request: Request) -> None:
        """Slot and pages; KV that is sound goes to the tree first."""
        self.pages_returned = True
        self._free_slot(request)
        held = request.held
        if held is not None:
            if not request.ended_badly:
                self.kv.publish(held, request.key(), request.kv, leaving=True)
            self.kv.release(held)
            request.held = None

    def _free_slot(self, request: Request) -> None:
        if request.slot >= 0:
            self.outgoing.forget(request.slot)
            self.slots.append(request.slot)
            request.slot = -1

    # Checks

    def check(self) -> None:
        """Raise InternalError, naming the leaking owner, unless pages, radix locks and slots add up; O(everything)."""
        self.kv.check()
        holders = {id(request): request for request in [*self.active, *self.reserved, *self.off_batch]}
        for flight in self.flights:
            holders.update({id(request): request for request in flight.requests if request.state is not State.GONE})
        for request in self.requests.values():
            if request.held is not None:
                holders[id(request)] = request
        live = {id(request.held) for request in holders.values() if request.held is not None}
        for held in self.kv.live:
            if id(held) not in live:
                raise InternalError(f"the page list of {held.name} is held by no request")
        taken = [request.slot for request in holders.values() if request.slot >= 0]
        if sorted(taken + self.slots) != list(range(self.config.max_running_requests)):
            raise InternalError(f"slots do not add up: {sorted(self.slots)} free, {sorted(taken)} taken")
