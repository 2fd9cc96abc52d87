"""Joins the scheduler and the handoff service on the loop's thread: who is handed over, which pages, and the outcome.

Sending (prefill, or a running request that moves): the scheduler computes as usual; finished pages and at last the
snapshot go to the service, which answers once they are the receiver's. Receiving (decode): a request waits here until
its sender begins, gets pages from the scheduler, and joins the running batch when everything has arrived.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import xxhash

from baton_serving.errors import BatonError, InternalError, InvalidRequest, Unavailable
from baton_serving.handoff.events import (
    Arrived,
    Begun,
    Delivered,
    HandoffEvent,
    HandoffFailure,
    ReceiveFailed,
    ReceiveQuiet,
    SendFailed,
    SendQuiet,
)
from baton_serving.handoff.protocol import PageSpan
from baton_serving.handoff.service import HandoffService
from baton_serving.kv.radix import pack
from baton_serving.runtime.control_calls import ControlHandler, Later
from baton_serving.runtime.link_rates import LinkRates
from baton_serving.runtime.messages import Failure, Finish, GenerateInput, HandoffTicket, TokenOutput
from baton_serving.sampling.params import TokenLogprobs
from baton_serving.scheduling.events import Snapshot
from baton_serving.scheduling.request import Request, State
from baton_serving.scheduling.scheduler import Scheduler

_LOOK_SECONDS = 0.25

log = logging.getLogger(__name__)


class RequestSnapshot(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The state of a request that travels beside its pages. Times are unix seconds.

    `prompt_hash` is XXH3-128 of the prompt's tokens: both sides tokenized for themselves and must agree. The last
    `unsent` of `output_ids` were reported to nobody yet; `logprobs` are theirs.
    """

    prompt_hash: str
    output_ids: list[int]
    unsent: int
    cached_tokens: int = 0
    logprobs: list[TokenLogprobs] = []
    prompt_logprobs: list[TokenLogprobs] | None = None
    scheduled: float = 0.0
    prefilled: float = 0.0


@dataclass
class _Sending:
    """`move` is the call that made a running request move, to be answered when it stands still."""

    ticket: HandoffTicket
    request: Request
    move: Later | None = None
    started: bool = False
    failed: bool = False
    receiver: str = ""  # the incarnation behind `ticket.receiver`, once the registry knows it


@dataclass
class _Receiving:
    """`reserved`: it holds pages. `over`: its terminal output is out, what remains are pages."""

    ticket: HandoffTicket
    request: Request
    begun: bool = False
    kv_tokens: int = 0
    reserved: bool = False
    over: bool = False


class HandoffBridge:
    """A `LoopExtension` of the worker `name`. `mode`, "prefill" or "decode", is the leg that it runs for a ticket which
    does not name it. `incarnation` tells which start of a worker is registered as alive ("": none); it must not block.
    """

    def __init__(
        self,
        service: HandoffService,
        scheduler: Scheduler,
        mode: str,
        wake_fd: int,
        incarnation: Callable[[str], str] = lambda worker: "",
        name: str = "",
    ) -> None:
        self._service = service
        self._name = name
        self._scheduler = scheduler
        self._mode = mode
        self._wake_fd = wake_fd
        self._incarnation = incarnation
        self._next_look = 0.0
        self._sending: dict[str, _Sending] = {}
        self._receiving: dict[str, _Receiving] = {}
        self._transfer_of: dict[str, str] = {}
        self._quarantined: dict[tuple[str, int], str] = {}
        self._outputs: list[TokenOutput] = []
        self._links = LinkRates()

    @property
    def wake_fd(self) -> int:
        return self._wake_fd

    @property
    def controls(self) -> dict[str, ControlHandler]:
        return {"move": self.move, "withdraw": self.withdraw}

    @property
    def waiting(self) -> int:
        """Requests that wait for their sender or for pages here."""
        return sum(not receiving.reserved for receiving in self._receiving.values())

    @property
    def quiet(self) -> bool:
        """No request is on its way here or from here."""
        return not (self._sending or self._receiving)

    def links(self) -> dict[str, float]:
        """Bytes a second at which pages come from each sender."""
        return self._links.rates()

    def stats(self) -> dict[str, float]:
        """Counters and gauges of the handoff, for `/metrics`."""
        stats = self._service.stats()
        return {
            "handoff_bytes_sent": stats.bytes_sent,
            "handoff_bytes_received": stats.bytes_received,
            "handoff_pages_sent": stats.pages_sent,
            "handoff_pages_received": stats.pages_received,
            "handoff_receive_seconds": stats.receive_seconds,
            "handoff_delivered": stats.delivered,
            "handoff_arrived": stats.arrived,
            "handoff_sends_failed": stats.sends_failed,
            "handoff_receives_failed": stats.receives_failed,
            "handoff_mismatched_pages": stats.mismatched_pages,
            "handoff_refused_messages": sum(stats.refused.values()),
            "handoff_source_pages_quarantined": stats.quarantined_source_pages,
            "handoff_peers": stats.peers,
            "handoff_fences": stats.fences,
            "handoff_transport_degraded": float(stats.transport_degraded),
            "handoff_waiting": self.waiting,
        }

    def admit(self, message: GenerateInput, request: Request) -> bool:
        """Take note of a request with a ticket; True when it is to wait here for its pages (InvalidRequest)."""
        ticket = message.handoff
        if ticket is None:
            return False
        if self._sends(ticket):
            self._service.open(ticket.transfer_id, ticket.attempt)
            request.handoff = True
            self._sending[ticket.transfer_id] = _Sending(ticket, request)
            self._transfer_of[request.rid] = ticket.transfer_id
            return False
        if not ticket.peer:
            raise InvalidRequest("a request to a decode worker must name its prefill worker", "bootstrap_host")
        self._service.expect(ticket.transfer_id, ticket.attempt, ticket.peer)
        request.timings.queued = time.time()
        self._receiving[ticket.transfer_id] = _Receiving(ticket, request)
        self._transfer_of[request.rid] = ticket.transfer_id
        return True

    def _sends(self, ticket: HandoffTicket) -> bool:
        """Whether this worker runs the prefill leg, whatever its role is by now for new requests."""
        if self._name and self._name in (ticket.peer, ticket.receiver):
            return ticket.peer == self._name
        return self._mode == "prefill"

    def move(self, rid: str, transfer_id: str, attempt: int = 0) -> Later:
        """Control call: stop a running request and offer it to whoever asks for the transfer.

        The result holds its `output_ids` once it stands still: another worker goes on after exactly those. It ends here
        with finish "handoff" when it was taken over, and goes on here when nobody takes it in time. Raises
        InvalidRequest when it is not decoding, about to end, or on the move already; NotFound.
        """
        if rid in self._transfer_of:
            raise InvalidRequest("the request is being handed over already", "rid")
        self._service.open(transfer_id, attempt)
        try:
            request = self._scheduler.extract(rid)
            if request is None:
                raise InvalidRequest("the request is about to end: let it", "rid")
        except BatonError as error:
            self._service.abort(transfer_id, error.message)
            raise
        sending = _Sending(HandoffTicket(transfer_id=transfer_id, attempt=attempt), request, move=Later(), started=True)
        self._sending[transfer_id] = sending
        self._transfer_of[rid] = transfer_id
        assert sending.move is not None
        return sending.move

    def withdraw(self, transfer_id: str) -> dict[str, bool]:
        """Control call: nobody will take over what was offered with `move`, so it goes on here at once.

        Without effect where a worker has asked for it by now. `known` tells whether it is on offer.
        """
        if known := transfer_id in self._sending:
            self._service.forsake(transfer_id, "the worker that was to take the request over was lost")
        return {"known": known}

    def aborted(self, rid: str, reason: str) -> None:
        """End the transfer of `rid`, or all (""). A request that the scheduler never saw gets its last output here."""
        for known in [rid] if rid else list(self._transfer_of):
            transfer_id = self._transfer_of.get(known)
            receiving = None if transfer_id is None else self._receiving.get(transfer_id)
            if receiving is not None and not receiving.reserved:
                self._end(receiving, finish=Finish("abort", reason))
            if transfer_id is not None:
                self._service.abort(transfer_id, reason)

    def ended(self, output: TokenOutput) -> None:
        """The scheduler put out a request's last output: whatever is under way for it is pointless now."""
        transfer_id = self._transfer_of.get(output.rid)
        if transfer_id is None:
            return
        sending = self._sending.get(transfer_id)
        if sending is not None and output.finish is not None and output.finish.kind == "handoff":
            return
        if sending is not None and sending.move is not None:
            sending.move.fail(InvalidRequest("the request ended before it stood still", "rid"))
        receiving = self._receiving.get(transfer_id)
        if receiving is not None:
            receiving.over = True
        self._service.abort(transfer_id, "the request ended")

    def busy(self, tick: int, seconds: float) -> None:
        """Tell peers that the loop stands still for up to `seconds` and is not lost."""
        self._service.beat(tick, seconds)

    def poll(self, tick: int) -> list[TokenOutput]:
        """Take in the service's events; returns last outputs of requests that the scheduler does not know."""
        self._hush()
        self._service.beat(tick)
        for event in self._service.events():
            self._handle(event)
        self._look_for_receivers()
        for receiving in list(self._receiving.values()):
            if receiving.begun and not receiving.reserved and not receiving.over:
                self._reserve(receiving)
        self.booked()  # a request that moves may stand still without a step
        outputs, self._outputs = self._outputs, []
        return outputs

    def _look_for_receivers(self) -> None:
        """Now and then: a receiver that was registered and is not any more will never ask for its pages."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        for transfer_id, sending in self._sending.items():
            worker = sending.ticket.receiver
            if not worker or sending.failed:
                continue
            found = self._incarnation(worker)
            if sending.receiver and found != sending.receiver:
                self._service.forsake(transfer_id, f"decode worker {worker!r} is gone")
            sending.receiver = sending.receiver or found

    def planned(self) -> None:
        """A step was planned: tell receivers whose requests are in it for the first time that they may reserve."""
        for transfer_id, sending in self._sending.items():
            if not sending.started and sending.request.state not in (State.NEW, State.WAITING):
                sending.started = True
                self._service.started(transfer_id, sending.request.goal)

    def booked(self) -> None:
        """A step was booked: pass on the pages and snapshots that it completed."""
        for event in self._scheduler.take_handoffs():
            transfer_id = self._transfer_of.get(event.rid)
            sending = None if transfer_id is None else self._sending.get(transfer_id)
            if transfer_id is None or sending is None:
                continue  # its transfer is over already
            if isinstance(event, Snapshot):
                self._stands_still(transfer_id, sending, event)
            elif not sending.failed:
                self._service.chunk_ready(transfer_id, _spans(event.first, event.pages))

    def _stands_still(self, transfer_id: str, sending: _Sending, snapshot: Snapshot) -> None:
        if sending.failed:
            if sending.move is not None:  # no page of it was offered yet
                self._forget_sending(sending)
            return
        if sending.move is not None:
            self._service.started(transfer_id, snapshot.kv_tokens)
            self._service.chunk_ready(transfer_id, _spans([0] * len(snapshot.pages), snapshot.pages))
            sending.move.resolve({"output_ids": snapshot.output_ids})
        self._service.finish(transfer_id, msgspec.msgpack.encode(_snapshot(snapshot, sending.request)))

    # Events

    def _handle(self, event: HandoffEvent) -> None:
        sending = self._sending.get(event.transfer_id)
        receiving = self._receiving.get(event.transfer_id)
        match event:
            case Begun() if receiving is not None:
                self._begin(receiving, event.kv_tokens)
            case Arrived() if receiving is not None:
                self._arrive(receiving, event)
            case ReceiveFailed() if receiving is not None:
                self._receive_failed(receiving, event)
            case ReceiveQuiet():
                self._lift(event)
            case Delivered() | SendQuiet() if sending is not None:
                self._forget_sending(sending)
            case SendFailed() if sending is not None:
                self._send_failed(sending, event)

    def _begin(self, receiving: _Receiving, kv_tokens: int) -> None:
        request = receiving.request
        known = len(request.prompt) + len(request.output)
        # A prefill computes all that is known; of a request that moves, the last token is the next step's input.
        if kv_tokens not in (known, known - 1 if request.output else known):
            message = f"the other worker has KV of {kv_tokens} tokens, this worker knows {known}: same tokenizer?"
            self._fail(receiving, Failure(InternalError.code, message))
            return
        receiving.begun = True
        receiving.kv_tokens = kv_tokens
        request.timings.scheduled = time.time()

    def _reserve(self, receiving: _Receiving) -> None:
        """Ask for pages; without room now, the next turn asks again."""
        try:
            reservation = self._scheduler.reserve(receiving.request, receiving.kv_tokens)
        except BatonError as error:
            param = error.param if isinstance(error, InvalidRequest) else None
            self._fail(receiving, Failure(error.code, error.message, param))
            return
        if reservation is None:
            return
        receiving.reserved = True
        receiving.request.timings.transfer_started = time.time()
        spans = _spans(reservation.first, reservation.pages)
        self._service.announce(receiving.ticket.transfer_id, spans, reservation.prefix_tokens)

    def _arrive(self, receiving: _Receiving, event: Arrived) -> None:
        request = receiving.request
        snapshot = msgspec.msgpack.decode(event.snapshot, type=RequestSnapshot)
        complaint = _complaint(snapshot, request)
        if complaint:
            self._drop_reservation(receiving, event, quarantine=False)
            self._fail(receiving, complaint)
            return
        self._links.add(event.sender, event.nbytes, event.seconds)
        timings = request.timings
        timings.transferred = time.time()
        timings.transfer_bytes, timings.transfer_pages = event.nbytes, event.pages
        timings.transfer_seconds, timings.transport = event.seconds, self._service.transport
        timings.scheduled = snapshot.scheduled or timings.scheduled
        timings.prefilled = snapshot.prefilled
        self._scheduler.adopt(
            request.rid,
            snapshot.output_ids,
            unsent=snapshot.unsent,
            logprobs=snapshot.logprobs,
            prompt_logprobs=snapshot.prompt_logprobs,
            cached_tokens=snapshot.cached_tokens,
        )
        self._forget_receiving(receiving)

    def _receive_failed(self, receiving: _Receiving, event: ReceiveFailed) -> None:
        if receiving.reserved:
            self._drop_reservation(receiving, event, quarantine=not event.quiet)
        self._fail(receiving, _as_failure(event.failure))

    def _drop_reservation(self, receiving: _Receiving, event: HandoffEvent, quarantine: bool) -> None:
        name = self._scheduler.release_reservation(receiving.request.rid, quarantine)
        receiving.reserved = False
        if name is not None:
            self._quarantined[event.transfer_id, event.attempt] = name

    def _lift(self, event: HandoffEvent) -> None:
        name = self._quarantined.pop((event.transfer_id, event.attempt), None)
        if name is not None:
            self._scheduler.unquarantine(name)

    def _send_failed(self, sending: _Sending, event: SendFailed) -> None:
        sending.failed = True
        failure = _as_failure(event.failure)
        if sending.move is None:
            self._scheduler.abort(sending.request.rid, failure.message, failure)
        else:
            log.warning("request %s was not taken over: %s", sending.request.rid, failure.message)
            sending.move.fail(Unavailable(failure.message))
        if event.quiet and sending.request.state is not State.STOPPING:
            self._forget_sending(sending)

    def _forget_sending(self, sending: _Sending) -> None:
        """No peer reads its pages any more."""
        request = sending.request
        if sending.failed and sending.move is not None and request.state is State.HANDING_OFF:
            self._scheduler.handoff_cancelled(request.rid)
        else:
            self._scheduler.handoff_done(request.rid)
        del self._sending[sending.ticket.transfer_id]
        self._transfer_of.pop(sending.request.rid, None)

    def _fail(self, receiving: _Receiving, failure: Failure) -> None:
        """End a request that holds no pages (any more)."""
        if not receiving.over:
            log.warning("request %s failed in transfer: %s", receiving.request.rid, failure.message)
        self._end(receiving, failure=failure)
        self._service.abort(receiving.ticket.transfer_id, failure.message, failure.code)

    def _end(self, receiving: _Receiving, finish: Finish | None = None, failure: Failure | None = None) -> None:
        request = receiving.request
        if not receiving.over:
            request.timings.finished = time.time()
            self._outputs.append(
                TokenOutput(
                    rid=request.rid,
                    prompt_tokens=len(request.prompt),
                    completion_tokens=len(request.output),
                    finish=finish,
                    failure=failure,
                    timings=request.timings,
                )
            )
        self._forget_receiving(receiving)

    def _forget_receiving(self, receiving: _Receiving) -> None:
        self._receiving.pop(receiving.ticket.transfer_id, None)
        self._transfer_of.pop(receiving.request.rid, None)

    def _hush(self) -> None:
        try:
            os.eventfd_read(self._wake_fd)
        except BlockingIOError:
            return


def _spans(first: list[int], pages: list[list[int]]) -> list[PageSpan]:
    return [PageSpan(group, start, ids) for group, (start, ids) in enumerate(zip(first, pages, strict=True))]


def _complaint(snapshot: RequestSnapshot, request: Request) -> Failure | None:
    """Why what arrived is not what this worker was asked for, if so."""
    if snapshot.prompt_hash != _prompt_hash(request):
        message = "the other worker computed another prompt than this worker was given: same tokenizer?"
        return Failure(InternalError.code, message)
    if snapshot.output_ids[: len(snapshot.output_ids) - snapshot.unsent] != request.output:
        name = "baton_resume.output_ids"
        return Failure(InvalidRequest.code, f"{name} are not the tokens that the other worker has reported", name)
    return None


def _prompt_hash(request: Request) -> str:
    return xxhash.xxh3_128_hexdigest(pack(request.prompt))


def _snapshot(event: Snapshot, request: Request) -> RequestSnapshot:
    return RequestSnapshot(
        prompt_hash=_prompt_hash(request),
        output_ids=event.output_ids,
        unsent=event.unsent,
        cached_tokens=event.cached_tokens,
        logprobs=event.logprobs,
        prompt_logprobs=event.prompt_logprobs,
        scheduled=request.timings.scheduled,
        prefilled=request.timings.prefilled,
    )


def _as_failure(failure: HandoffFailure) -> Failure:
    code = failure.code if failure.code != "cancelled" else Unavailable.code
    return Failure(code, failure.message)
