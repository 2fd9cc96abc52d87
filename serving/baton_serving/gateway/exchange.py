"""Carries one request through its life: feeds events to the table and does what the table says. No task, no waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from baton_serving.errors import BatonError, QueueFull, Unavailable
from baton_serving.gateway.ask import Ask
from baton_serving.gateway.fleet import Endpoint
from baton_serving.gateway.handover import Handover, MoveCall
from baton_serving.gateway.http.head import Head
from baton_serving.gateway.leg import DONE, LOST, Leg
from baton_serving.gateway.lifecycle import TABLE, Action, Event, Phase
from baton_serving.gateway.outgoing import Outgoing
from baton_serving.gateway.record import Record
from baton_serving.gateway.replies import Reply, error_event, error_reply
from baton_serving.gateway.routing import Decision
from baton_serving.gateway.transcript import Continuation, Progress, Transcript, Unreadable
from baton_serving.gateway.usage import streamed_tokens, whole_tokens

if TYPE_CHECKING:
    from baton_serving.gateway.core import Core
    from baton_serving.gateway.sink import Sink

SECOND_CHANCE = 0.1  # seconds before a worker that failed is asked again, when there is no other; then four times that

_WAITING = (Phase.QUEUED, Phase.STRANDED)
_NOBODY: frozenset[Endpoint] = frozenset()
# Asked for with every event; in an enum's class that takes long.
_STREAMING, _NOTHING = Phase.STREAMING, Action.NONE


class Exchange:
    """One client request; it ends once the client has its terminal reply or is gone, with every leg released."""

    __slots__ = (
        *("_admitted", "_chunks", "_continuation", "_core", "_decision", "_failure", "_generates", "_handover"),
        *("_lost", "_outgoing", "_pauses", "_progress", "_sink", "_spoke", "_timer", "_transcript", "_tries"),
        *("_wait_until", "ask", "deadline", "decode", "offered", "phase", "prefill", "record", "taker"),
    )

    def __init__(self, core: Core, ask: Ask, sink: Sink, record: Record, generates: bool = True) -> None:
        self._core = core
        self.ask = ask
        self._sink = sink
        self.record = record
        self._generates = generates
        self.phase = Phase.QUEUED
        self.deadline = 0.0 if ask.timeout is None else record.started + ask.timeout
        self.prefill: Leg | None = None
        self.decode: Leg | None = None
        self.taker: Leg | None = None
        self.offered = False  # to admission, which must hear of the end
        self._outgoing = Outgoing(ask, core.names, self.deadline, generates)
        self._admitted = False
        self._decision: Decision | None = None
        self._failure: BatonError | Reply | None = None
        self._lost: frozenset[Endpoint] = _NOBODY  # not asked again, but for want of others
        self._spoke = False  # decode of the latest attempt, before it was lost
        self._tries = 0  # attempts since the client last got something
        self._pauses = 0
        self._wait_until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._chunks = b""  # what decode sent and the client has not
        self._transcript = Transcript() if ask.stream else None
        self._progress: Progress | None = None  # what the client had when decode was lost last
        self._continuation: Continuation | None = None
        self._handover: Handover | None = None

    # What happens to it

    def admitted(self) -> None:
        """Admission lets it go on."""
        self._admitted = True
        self._look_for_workers()

    def expire(self, error: BatonError) -> None:
        """Its deadline has passed, or admission pushed it out."""
        if self.phase is not Phase.ENDED:
            self._failure = error
            self._happen(Event.EXPIRED)

    def client_gone(self) -> None:
        self._happen(Event.CLIENT_GONE)

    def pause(self) -> None:
        """The client lags behind: its worker is read no further."""
        if self.decode is not None:
            self.decode.pause()

    def resume(self) -> None:
        if self.decode is not None:
            self.decode.resume()

    def fleet_changed(self) -> None:
        """Workers came or went: look again, if it waits for some."""
        if self._admitted and self.phase in _WAITING:
            self._look_for_workers()

    def leg_bytes(self, leg: Leg, chunks: bytes) -> None:
        if leg is self.decode:
            if self.phase is _STREAMING and self._continuation is None:  # nearly always
                if self._transcript is not None:
                    self._transcript.add(chunks)
                self.record.bytes_out += len(chunks)
                self._sink.relay(chunks)
                return
            self._chunks = chunks
            self._happen(Event.DECODE_BYTES)
        if self._handover is not None:
            if leg is self.taker:
                self._handover.early += chunks
            self._switch_when_complete()

    def leg_event(self, leg: Leg, event: Event) -> None:
        handover = self._handover
        if event is DONE[leg.name] and not leg.event_stream and leg is not self.prefill and self.record.first_byte:
            leg.failure = "answered with no stream, though one was to go on"
            event = LOST[leg.name]
        if leg is self.taker and handover is not None:
            if event is Event.TAKER_DONE:
                handover.taker_over = True
                self._switch_when_complete()
                return
            if self.decode is None or self.decode.done or handover.holds_end:
                event = Event.MOVE_FAILED  # there is no stream left to stay with
        if leg is self.prefill or leg is self.decode or leg is self.taker:
            self._happen(event)
        if self.phase is Phase.TAKING and leg is self.decode:
            self._switch_when_complete()

    def worker_drains(self, leg: Leg) -> None:
        streams = leg is self.decode and self.phase is Phase.STREAMING and not leg.asked_to_move and self.ask.movable()
        if streams and self._core.router.can_move(self.ask.facts, leg.endpoint, self._lost) and self._can_go_on():
            leg.asked_to_move = True
            self._happen(Event.DRAINING)

    def worker_stands_still(self, leg: Leg, reason: str) -> None:
        """It may recover: a request that nobody else could take, or go on with, waits for that."""
        weights = leg.endpoint.weight_digest if self.record.first_byte else ""
        others = self._core.router.can_serve(leg.endpoint.worker.model, weights)
        if others and (self.phase is not Phase.STREAMING or leg is not self.decode or self._can_go_on()):
            leg.fail(reason)

    def _can_go_on(self) -> bool:
        try:
            return self._transcript is not None and bool(self._transcript.progress())
        except Unreadable:
            return False

    def _happen(self, event: Event) -> None:
        self.phase, action = TABLE[self.phase][event]
        if action is not _NOTHING:
            _ACTIONS[action](self)
        elif event is Event.PREFILL_DONE:
            self._note("prefill done", "")

    # Looking for workers

    def _look_for_workers(self) -> None:
        """Go to workers, or wait within bounds until some can take the request."""
        config, core = self._core.router.config, self._core
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._tries >= config.attempts:
            self._happen(Event.NO_ROUTE)
            return
        try:
            decision = self._route()
        except BatonError as error:
            self._failure = error
            self._happen(Event.NO_ROUTE)
            return
        if decision is not None:
            if self._wait_until:
                self._wait_until = 0.0
                core.waiting.discard(self)
            self._decision = decision
            self._happen(Event.ROUTED)
            return
        now = core.now()
        if not self._wait_until:
            self._wait_until = now + (config.migrate_wait if self.record.attempts else config.worker_wait)
        left = self._wait_until - now
        if self._full or left <= 0:
            self._happen(Event.NO_ROUTE)
            return
        core.waiting.add(self)
        if self._lost:
            left = min(left, SECOND_CHANCE * 4**self._pauses)
            self._timer = core.loop.call_later(left, self._give_second_chance)
        else:
            self._timer = core.loop.call_later(left, self._look_for_workers)

    def _route(self) -> Decision | None:
        """Rather a wholly different pair: the other leg may have been the reason.

        But when decode was lost in the middle of its answer, the prefill worker, which holds the prompt, was not.
        """
        router, facts, divided = self._core.router, self.ask.facts, self._generates
        last = self._decision.route if self._lost and self._decision is not None else None
        if last is not None and last.prefill is not None:
            if self._spoke and last.prefill not in self._lost:
                return router.route(facts, self._lost, divided=divided, keep=last.prefill)
            fresh = router.route(facts, self._lost.union(last.endpoints), divided=divided)
            if fresh is not None and fresh.route.prefill is not None:
                return fresh
        return router.route(facts, self._lost, divided=divided)

    def _give_second_chance(self) -> None:
        self._pauses += 1
        self._lost = _NOBODY
        self._look_for_workers()

    @property
    def _full(self) -> bool:
        """Whether the workers' own answer was that they are full: waiting here would only add to it."""
        return isinstance(self._failure, Reply) and self._failure.status == QueueFull.status

    # What the table says

    def _send(self) -> None:
        decision, core = self._decision, self._core
        assert decision is not None
        route, ask, record = decision.route, self.ask, self.record
        self._tries += 1
        record.attempts += ((core.now(), decision),)
        resume = None if self._progress is None else self._progress.resume(ask.choices())
        body = self._outgoing.body(len(record.attempts), route.prefill, route.decode, resume)
        tokens = decision.uncached
        decode = self.decode = Leg(route.decode, "decode", self, 0 if route.prefill else tokens)
        if route.prefill is not None:
            prefill = self.prefill = Leg(route.prefill, "prefill", self, tokens)
            prefill.start(self._outgoing.request(route.prefill, body, decision.lines))
        decode.start(self._outgoing.request(route.decode, body, decision.lines))
        if self._sink.lagging:
            decode.pause()

    def _retry(self) -> None:
        """Remember why the attempt failed, end both legs, and look for another pair."""
        self._blame()
        self._handover = None
        if self.record.first_byte and not self._read_progress():
            self._happen(Event.NO_ROUTE)
            return
        self._release()
        self._look_for_workers()

    def _blame(self) -> None:
        """Who failed is avoided, unless an idle connection had merely been closed meanwhile."""
        self._spoke = self.decode is not None and self.decode.saw_bytes
        for leg in (self.prefill, self.decode, self.taker):
            if leg is None or not leg.done or not leg.failure:
                continue
            self._note("lost", f"{leg.name} {leg.endpoint.id}: {leg.failure}")
            self._failure = leg.refusal or Unavailable(
                f"{leg.name} worker {leg.endpoint.id} was lost: {leg.failure}", retry_after=1
            )
            if leg.stale:
                leg.endpoint.pool.close()
                self._tries -= 1
                continue
            self._lost |= {leg.endpoint}
            self._core.leg_lost(leg, self._decision)

    def _read_progress(self) -> bool:
        """Find out what the client has. False when nobody could go on from there."""
        if self._transcript is None:
            return False
        try:
            self._progress = self._transcript.progress()
            self._progress.resume(self.ask.choices())
        except Unreadable as error:
            self._failure = Unavailable(f"the stream broke off and cannot go on: {error}")
            return False
        continuation = Continuation(self._progress)
        self._continuation = continuation if continuation.needed else None
        assert self._decision is not None
        self.ask.facts.weights = self._decision.route.decode.weight_digest
        if self.phase is Phase.STRANDED and self.decode is not None and self.decode.saw_bytes:
            self.record.moved += 1
            self._core.figures.migrated("computed")
        return True

    def _forward(self) -> None:
        decode, core = self.decode, self._core
        assert decode is not None
        assert decode.head is not None
        chunks, self._chunks = self._chunks, b""
        self._note_stages(decode.head)
        if self._handover is not None:
            chunks = self._handover.pass_on(chunks)
        if self._continuation is not None:
            chunks = self._continuation.filter(chunks)
        if not chunks:
            return
        if self._transcript is not None:
            self._transcript.add(chunks)
        self.record.bytes_out += len(chunks)
        if self.record.first_byte:
            if self._tries:
                self._note("goes on", decode.endpoint.id)
            self._tries = self._pauses = 0
            self._lost = _NOBODY
            self._sink.relay(chunks)
            return
        self._tries = 0
        self.record.first_byte = core.now()
        sent, decision = self.record.attempts[-1]
        core.router.answered(decision, self.record.first_byte - sent)
        self.record.status = decode.head.status
        self._sink.begin(decode.head.status, decode.head.relayed + self._own_lines(), chunks)

    def _finish(self) -> None:
        decode = self.decode
        assert decode is not None
        assert decode.head is not None
        if self.record.first_byte:
            if self._handover is not None:
                self._sink.relay(self._handover.give_back())
            self._sink.end()
        else:
            self._note_stages(decode.head)
            self.record.status = decode.head.status
            self.record.bytes_out = len(decode.body)
            if self._core.admission.counts(self.ask.number):
                self.record.tokens = whole_tokens(decode.body)
            self._sink.reply(decode.head.status, decode.head.relayed + self._own_lines(), decode.body)
        self._core.pair_worked(self._decision)
        self._over("done")

    def _pass_refusal(self) -> None:
        refusals = [leg.refusal for leg in (self.decode, self.prefill) if leg is not None and leg.refusal is not None]
        self._reply(refusals[0])

    def _reply_failure(self) -> None:
        nowhere = f"no worker was ready within {self._core.router.config.worker_wait:g} s; try again"
        self._reply(self._failure or Unavailable(nowhere, retry_after=1))

    def _reply(self, what: BatonError | Reply) -> None:
        reply = error_reply(what) if isinstance(what, BatonError) else what
        error = what.message if isinstance(what, BatonError) else reply.body[:300].decode(errors="replace")
        self.record.status, self.record.error = reply.status, error
        self._sink.reply(reply.status, reply.lines + self._own_lines(), reply.body)
        self._over("refused" if reply.status < 500 and reply.status != QueueFull.status else "failed")

    def _break_off(self) -> None:
        failure = self._failure
        if isinstance(failure, Reply):
            failure = Unavailable(f"another worker could not go on: it answered {failure.status}")
        error = failure or Unavailable("the worker was lost, and no other with the same weights could go on")
        self.record.error = error.message
        self._sink.relay(error_event(error))
        self._sink.end()
        self._over("broken_off")

    def _leave(self) -> None:
        self._over("client_gone")

    # Moving with pages

    def _ask_move(self) -> None:
        """Ask the draining worker to stand still."""
        decode, core = self.decode, self._core
        assert decode is not None
        self._note("asked to move", decode.endpoint.id)
        attempt = len(self.record.attempts) + 1
        handover = self._handover = Handover(self._outgoing.transfer_id(attempt), attempt)

        def answered(tokens: list[int] | None) -> None:
            if self._handover is handover and self.phase is Phase.MOVING:
                handover.told = tokens
                self._happen(Event.MOVE_FAILED if tokens is None else Event.STOOD_STILL)

        core.spawn(MoveCall(decode.endpoint, answered).send(handover.request(self._outgoing.rid)))

    def _take_over(self) -> None:
        """Send the continuation to another worker, which fetches the pages from the first."""
        decode, handover = self.decode, self._handover
        assert decode is not None
        assert handover is not None
        target = self._core.router.taker(self.ask.facts, decode.endpoint, self._lost)
        if target is None or not self._read_progress():
            self._happen(Event.TAKER_LOST)
            return
        assert self._progress is not None
        resume = {**self._progress.resume(1), "output_ids": [handover.told]}
        body = self._outgoing.body(handover.attempt, decode.endpoint, target, resume, handover.transfer_id)
        decision = self._core.router.moved(self._decision, target)
        self.record.attempts += ((self._core.now(), decision),)
        self.taker = Leg(target, "taker", self, 0)
        self.taker.start(self._outgoing.request(target, body))

    def _switch_when_complete(self) -> None:
        """Let the taker speak once the client has every token that came before."""
        handover = self._handover
        if handover is None or handover.told is None or self.phase is not Phase.TAKING or self._transcript is None:
            return
        try:
            had = len(self._transcript.progress().tokens.get(0, ()))
        except Unreadable:
            had = -1
        if had == len(handover.told):
            if handover.taker_over:
                self._happen(Event.TAKER_DONE)
            elif handover.early:
                self._happen(Event.TAKER_BYTES)
        elif had > len(handover.told) or self.decode is None or self.decode.done:
            self._happen(Event.MOVE_FAILED)  # they will never come

    def _stay(self) -> None:
        """The first worker goes on."""
        handover, self._handover = self._handover, None
        if self.taker is not None:
            self._blame()
            self.taker.release()
            self.taker = None
        if handover is not None and handover.told is not None and self.decode is not None and not self.decode.done:
            self._core.spawn(handover.withdraw(self.decode.endpoint, self._outgoing.rid))
        if handover is not None and handover.holds_end:
            self._chunks = handover.give_back()
            self._forward()

    def _switch(self) -> None:
        """The taker is decode from here on."""
        handover, taker, core = self._handover, self.taker, self._core
        assert handover is not None
        assert taker is not None
        assert self.decode is not None
        self.decode.release()
        taker.name = "decode"
        self.decode, self.taker, self._handover = taker, None, None
        self.record.moved += 1
        core.figures.migrated("moved")
        self._note("moved", taker.endpoint.id)
        self._decision = core.router.moved(self._decision, taker.endpoint)
        if handover.early:
            self._chunks = handover.early
            self._forward()

    def _switch_and_finish(self) -> None:
        self._switch()
        self._finish()

    def tokens_used(self) -> int:
        """Tokens of prompt and answer, as far as is known; 0 when no worker answered."""
        if self.record.tokens or not self.record.first_byte:
            return self.record.tokens
        return streamed_tokens(self.ask.facts.prompt_tokens, self._transcript)

    def _own_lines(self) -> bytes:
        request_id, attempts = self.ask.request_id.encode(), len(self.record.attempts)
        route = b"" if self._decision is None else self._decision.route.line
        return b"x-request-id: %b\r\nx-baton-attempts: %d\r\n%b" % (request_id, attempts, route)

    def _note(self, what: str, detail: str) -> None:
        self.record.notes += ((self._core.now(), what, detail),)

    def _note_stages(self, head: Head) -> None:
        """What the latest attempt's decode worker says of its stages."""
        record, number = self.record, len(self.record.attempts)
        if head.stages and (not record.stages or record.stages[-1][0] != number):
            record.stages += ((number, head.stages),)

    def _release(self) -> None:
        for leg in (self.prefill, self.decode, self.taker):
            if leg is not None and not leg.done:
                leg.release()
        self.prefill = self.decode = self.taker = None

    def _over(self, outcome: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if outcome == "done" and self.prefill is not None:
            self._core.leave_alone(self.prefill)
            self.prefill = None
        self._release()
        self.record.outcome = outcome
        self.record.ended = self._core.now()
        self._core.ended(self)


_ACTIONS: Mapping[Action, Callable[[Exchange], None]] = {
    Action.SEND: Exchange._send,
    Action.RETRY: Exchange._retry,
    Action.FORWARD: Exchange._forward,
    Action.FINISH: Exchange._finish,
    Action.PASS_REFUSAL: Exchange._pass_refusal,
    Action.REPLY_FAILURE: Exchange._reply_failure,
    Action.BREAK_OFF: Exchange._break_off,
    Action.RELEASE: Exchange._leave,
    Action.ASK_MOVE: Exchange._ask_move,
    Action.TAKE_OVER: Exchange._take_over,
    Action.STAY: Exchange._stay,
    Action.SWITCH: Exchange._switch,
    Action.SWITCH_AND_FINISH: Exchange._switch_and_finish,
}
