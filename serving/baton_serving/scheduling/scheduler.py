"""Decides what every step contains. Rank 0 alone runs it; what it decides reaches the executors as `StepPlan`s.

The loop around it, at depth 0 (without overlap) and at depth 1 (the next step is planned and launched while the
device works on the previous one):

    plan = scheduler.schedule()                 previous, plan = plan, scheduler.schedule()
    result = run(plan)                          launch(plan)
    outputs = scheduler.commit(plan, result)    outputs = scheduler.commit(previous, wait(previous))

Nothing here blocks, sleeps, or reads a clock but the one it is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from baton_serving.errors import InternalError, InvalidRequest, QueueFull
from baton_serving.kv.layout import KVLayout
from baton_serving.kv.manager import KVManager
from baton_serving.kv.radix import CacheObserver
from baton_serving.scheduling.builder import StepBuilder
from baton_serving.scheduling.config import SchedulerConfig
from baton_serving.scheduling.decode import DecodePlanner
from baton_serving.scheduling.events import Failure, Finish, HandoffEvent, Reservation, TokenOutput
from baton_serving.scheduling.handover import Handover
from baton_serving.scheduling.outcome import OutcomeBook
from baton_serving.scheduling.prefill import PrefillPlanner
from baton_serving.scheduling.request import Event, Request
from baton_serving.scheduling.roster import Roster
from baton_serving.scheduling.step import StepPlan, StepResult, TokenLogprobs


class Scheduler:
    """Continuous batching over `num_pages` KV pages of `layout`.

    Every request that `add` takes ends in exactly one output with `finish` or `failure`. Outputs are returned by
    `commit`, and by `take_outputs` when there is no step to commit; both hand out each output once, in order.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        layout: KVLayout,
        num_pages: int,
        *,
        clock: Callable[[], float] = time.time,
        observer: CacheObserver | None = None,
    ) -> None:
        self._kv = KVManager(layout, num_pages, radix=not config.disable_radix_cache, observer=observer)
        self._roster = Roster(config, self._kv, clock)
        self._mixed = config.enable_mixed_chunk
        self._prefill = PrefillPlanner(self._roster)
        self._decode = DecodePlanner(self._roster)
        self._book = OutcomeBook(self._roster)
        self._handover = Handover(self._roster, self._book)
        self._arrivals = 0

    # Requests

    def add(self, request: Request) -> None:
        """Take in a new request. One that cannot be served is answered at once: see `take_outputs`.

        Raises InvalidRequest when a request of that `rid` is still here.
        """
        roster = self._roster
        self._refuse_duplicate(request)
        request.timings.queued = roster.clock()
        try:
            self._fit(request)
        except InvalidRequest as error:
            roster.end(request, failure=Failure(error.code, error.message, error.param))
            return
        if request.output and (finish := request.finish_at(len(request.output))):
            roster.end(request, finish)
            return
        if roster.queue.full:
            message = f"{len(roster.queue)} requests are waiting already, which is the limit; try again later"
            roster.end(request, failure=Failure(QueueFull.code, message))
            return
        self._number(request)
        roster.requests[request.rid] = request
        request.advance(Event.QUEUE)
        request.set_goal()
        roster.queue.push(request)
        roster.pages_returned = True

    def abort(self, rid: str, reason: str = "aborted", failure: Failure | None = None) -> int:
        """End the request, with `failure` if given; no effect on an unknown or ended one.

        Returns the number of the first step that does not contain it. Its pages are free once all earlier steps are
        committed. Pages that a peer may touch stay until `handoff_done` or `release_reservation`.
        """
        request = self._roster.requests.get(rid)
        if request is not None and not request.ended:
            self._roster.end(request, None if failure else Finish("abort", reason), failure)
            self._roster.settle()
        return self._roster.next_step

    def abort_all(self, reason: str = "aborted", failure: Failure | None = None) -> int:
        for rid in list(self._roster.requests):
            self.abort(rid, reason, failure)
        return self._roster.next_step

    def stop_found(self, rid: str, completion_tokens: int) -> None:
        """A stop string ends the request after `completion_tokens` tokens; no effect on an unknown or ended one."""
        request = self._roster.requests.get(rid)
        if request is not None and not request.ended:
            request.sent = completion_tokens
            self._roster.end(request, Finish("stop"))
            self._roster.settle()

    # Steps

    def schedule(self) -> StepPlan | None:
        """The next step to launch, or None when nothing can run now.

        At most two steps may be uncommitted. After None with a step in flight, commit it and ask again; with none in
        flight, new input must come first.
        """
        roster = self._roster
        if len(roster.flights) > 1:
            raise InternalError("two steps are in flight; commit one before planning the next")
        self._decode.join()
        builder = StepBuilder(roster.next_step)
        self._fill(builder)
        while not builder.requests and not roster.flights and roster.retract_one():
            self._fill(builder)
        if not builder.requests:
            if not roster.active:
                roster.ratio.reset()
            return None
        flight = builder.build(roster.outgoing)
        roster.flights.append(flight)
        roster.next_step += 1
        return flight.plan

    def commit(self, plan: StepPlan, result: StepResult) -> list[TokenOutput]:
        """Book the result of the oldest uncommitted step; returns all outputs not handed out yet.

        Raises InternalError when `plan` or `result` is of another step.
        """
        flights = self._roster.flights
        if not flights or flights[0].plan.step != plan.step:
            raise InternalError(f"step {plan.step} is not the oldest one in flight")
        self._book.commit(flights.popleft(), result)
        return self.take_outputs()

    def take_outputs(self) -> list[TokenOutput]:
        """Outputs that nobody took yet: tokens, and terminal ones of aborted and refused requests."""
        outputs = self._roster.outputs
        if outputs:
            self._roster.outputs = []
        return outputs

    def _fill(self, builder: StepBuilder) -> None:
        if self._mixed:
            self._decode.plan(builder)
            self._prefill.plan(builder)
            return
        self._prefill.plan(builder)
        if not builder.requests:
            self._decode.plan(builder)

    # Handoff: the prefill side, and a running request that moves

    def take_handoffs(self) -> list[HandoffEvent]:
        """What `handoff` must know, in order: finished chunks of requests with `handoff=True`, then their snapshots.

        Such a request keeps its pages from its first `ChunkReady` on until `handoff_done`, whatever becomes of it,
        and is not retracted meanwhile. Its tokens are in the snapshot, not in outputs.
        """
        events, self._roster.handoffs = self._roster.handoffs, []
        return events

    def handoff_done(self, rid: str) -> bool:
        """No peer reads the request's pages any more: free them. One that was handed over ends with kind "handoff".

        False when no pages of `rid` were kept for a peer.
        """
        return self._handover.done(rid)

    def handoff_cancelled(self, rid: str) -> None:
        """The peer did not take a request of which a snapshot was given: decode it here. No peer may read any more.

        Raises NotFound, or InvalidRequest when the request is in another state.
        """
        self._handover.resume(rid)

    def extract(self, rid: str) -> Request | None:
        """Stop a running request between two steps; its snapshot comes with `take_handoffs` once it stands still.

        None when it is about to end by length or to be handed over anyway. It may still end in its last launched
        step; then there is an output instead of a snapshot. Raises NotFound, or InvalidRequest when it is not decoding.
        """
        return self._handover.extract(rid)

    # Handoff: the decode side

    def reserve(self, request: Request, kv_tokens: int | None = None) -> Reservation | None:
        """Keep a slot and pages for the KV of a request that a peer computes; None when there is no room now.

        That is the KV of its first `kv_tokens` tokens; by default of all that are known, when the peer will draw the
        next one.
        No output is owed for it before `adopt`, unless it is aborted. Reserved pages are never taken back; a tree
        prefix that it counts on is locked. Raises InvalidRequest when it could never fit, or its `rid` is here.
        """
        self._refuse_duplicate(request)
        self._fit(request)
        self._number(request)
        return self._handover.reserve(request, kv_tokens)

    def adopt(
        self,
        rid: str,
        output: list[int],
        *,
        unsent: int,
        logprobs: list[TokenLogprobs],
        prompt_logprobs: list[TokenLogprobs] | None = None,
        cached_tokens: int = 0,
    ) -> None:
        """All KV of a reserved request is here, for its prompt and all but the last of `output`: decode from the next
        step on, or end it if the last token ends it. The last `unsent` tokens are reported here.

        If it was aborted, this frees its pages. Raises NotFound, or InvalidRequest when it is not reserved.
        """
        self._handover.adopt(rid, output, unsent, logprobs, prompt_logprobs, cached_tokens)

    def release_reservation(self, rid: str, quarantine: bool) -> str | None:
        """Give up a reservation; no output comes of it. With `quarantine`, a remote write may still land on its pages:
        they stay out of reach until `unquarantine` is called with the name returned. Raises NotFound or InvalidRequest.
        """
        return self._handover.release_reservation(rid, quarantine)

    def unquarantine(self, owner: str) -> None:
        """No write can land on those pages any more. Raises NotFound for an unknown name."""
        self._handover.unquarantine(owner)

    # State

    @property
    def idle(self) -> bool:
        """Nothing is waiting, running, reserved, being handed over, or in flight."""
        roster = self._roster
        return not (roster.requests or roster.off_batch or roster.flights)

    @property
    def holds_kv(self) -> bool:
        """Some request holds pages, or a step is under way; requests that wait hold nothing."""
        return bool(self._kv.live or self._roster.flights)

    def retract_all(self) -> None:
        """Take everything off the batch and back to the queue, but what a peer may touch: that goes on to its end."""
        while self._roster.retract_one():
            pass

    def rename(self, namespace: str) -> None:
        """From now on the KV of all requests here is that of `namespace`; none may hold any yet (InternalError)."""
        if self.holds_kv:
            raise InternalError("requests hold KV of other weights")
        for request in self._roster.requests.values():
            request.namespace = namespace
            request.blocker = None

    def flush_cache(self) -> int:
        """Drop all cached KV that no request uses; returns the number of pages freed."""
        return self._kv.flush()

    def check(self) -> None:
        """Raise InternalError, naming the leaking owner, unless pages, radix locks and slots add up; O(everything).

        To be run when idle, when nothing may be in use: then all pages are free, cached or quarantined.
        """
        self._roster.check()
        if self.idle and (self._kv.pool.in_use or len(self._roster.slots) != self._roster.config.max_running_requests):
            raise InternalError(f"idle, but {self._kv.pool.in_use} pages and some slots are in use")

    def stats(self) -> dict[str, float]:
        """Gauges of queue and pools, and counters since the start."""
        roster, pool = self._roster, self._kv.pool
        return {
            "requests_waiting": len(roster.queue),
            "requests_running": len(roster.running),
            "requests_prefilling": len(roster.prefilling),
            "tokens_waiting": sum(r.goal - r.computed for queue in (roster.queue, roster.prefilling) for r in queue),
            "requests_reserved": len(roster.reserved),
            "retractions_total": roster.retractions,
            "prompt_tokens_total": roster.prompt_tokens,
            "cached_tokens_total": roster.cached_tokens,
            "pages_total": pool.total,
            "pages_free": pool.free,
            "pages_cached": pool.cached,
            "pages_evictable": self._kv.tree.evictable,
            "pages_in_use": pool.in_use,
            "pages_quarantined": pool.quarantined,
            "new_token_ratio": roster.ratio.value,
        }

    def _refuse_duplicate(self, request: Request) -> None:
        if request.rid in self._roster.requests:
            raise InvalidRequest(f"a request with id {request.rid} is here already; ids must be unique", "rid")

    def _number(self, request: Request) -> None:
        self._arrivals += 1
        request.arrival = self._arrivals

    def _fit(self, request: Request) -> None:
        """Bound the request's output by context and pool; InvalidRequest when not even its prompt has room."""
        roster = self._roster
        if not request.prompt:
            raise InvalidRequest("the prompt is empty; it needs at least one token", "prompt")
        room = roster.max_tokens - min(1, request.params.max_new_tokens)
        if len(request.prompt) > room:
            if not roster.config.allow_auto_truncate:
                limit = (
                    "the context" if roster.max_tokens == roster.config.context_len else "the KV cache of this worker"
                )
                raise InvalidRequest(
                    f"the prompt has {len(request.prompt)} tokens, but {limit} has room for {room} and an answer; "
                    "shorten the prompt",
                    "prompt",
                )
            request.truncate(room)
        request.limit = min(request.params.max_new_tokens, roster.max_tokens - len(request.prompt))
