"""One gateway process's data path: requests in, exchanges between clients and workers, and what watches over them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from baton_bootstrap.client import View
from baton_bootstrap.records import State
from baton_serving.errors import BatonError, DeadlineExceeded, InvalidRequest, Unavailable
from baton_serving.gateway.admission import Admission, OpenDoor
from baton_serving.gateway.ask import Ask, Names
from baton_serving.gateway.exchange import Exchange
from baton_serving.gateway.fleet import Endpoint
from baton_serving.gateway.http.downstream import Incoming
from baton_serving.gateway.leg import NOBODY, Leg
from baton_serving.gateway.lifecycle import Phase
from baton_serving.gateway.metrics import Figures
from baton_serving.gateway.record import Record
from baton_serving.gateway.replies import error_reply
from baton_serving.gateway.routing import Decision, Router
from baton_serving.gateway.sink import Sink
from baton_serving.logs import fields

log = logging.getLogger(__name__)

ABSENCE_LIMIT = 1.0  # seconds that a worker may be missing from the view before its open requests are given up
LOOK_EVERY = 0.25  # seconds between two looks at open requests
ALONE_SECONDS = 1.0  # for a prefill reply that nobody waits for any more


@dataclass(frozen=True)
class Patience:
    """In seconds: how long a stream may be silent between two events, how long the first byte may take, and the rest of
    a piece of which some has come (workers write each in one go).
    """

    stall: float = 30.0
    first_byte: float = 600.0
    half: float = 5.0


class Core:
    """All calls on one loop."""

    def __init__(
        self,
        router: Router,
        admission: Admission | None = None,
        patience: Patience | None = None,
        on_begin: Callable[[Record], None] | None = None,
    ) -> None:
        self.router = router
        self.admission: Admission = admission or OpenDoor()
        self.figures = Figures()
        self.names = Names()
        self.loop = asyncio.get_running_loop()
        self.now = time.monotonic
        self.waiting: set[Exchange] = set()  # for workers
        self.queued: dict[int, Exchange] = {}  # for admission
        self.open: set[Exchange] = set()
        self._alone: deque[tuple[float, Leg]] = deque()  # legs that nobody waits for, and when they are to be over
        self.draining = False
        self._patience = patience or Patience()
        self.on_begin = on_begin
        self.on_end: Callable[[Record], None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: asyncio.Event | None = None  # while somebody waits for it

    # Requests

    def begin(
        self, incoming: Incoming, path: str, sink: Sink, tenant: str = "", *, generates: bool = True
    ) -> Exchange | None:
        """Run a request on the workers' route `path`; None when it was refused at once.

        One that does not generate goes to a single worker, untouched.
        """
        started = self.now()
        try:
            if incoming.method != "POST":
                raise MethodNotAllowed(f"{incoming.path} takes POST, not {incoming.method}")
            ask = Ask(incoming, path, self.names, tenant)
        except BatonError as error:
            reply = error_reply(error)
            self.figures.ended("refused", path, 0.0, 0.0)
            sink.reply(reply.status, reply.lines, reply.body)
            return None
        trace = incoming.headers.get(b"traceparent", b"").decode("latin-1")
        record = Record(
            *(ask.number, ask.request_id, path, started, ask.facts.model, tenant, trace, ask.stream),
            bytes_in=len(incoming.body),
        )
        exchange = Exchange(self, ask, sink, record, generates)
        if self.on_begin is not None:
            self.on_begin(record)
        self.open.add(exchange)
        self._admit(exchange)
        return exchange

    def _admit(self, exchange: Exchange) -> None:
        try:
            at_once = self.admission.offer(exchange.ask.facts, self.now())
        except BatonError as error:
            exchange.expire(error)
            return
        exchange.offered = True
        if at_once:
            exchange.admitted()
        else:
            self.queued[exchange.ask.number] = exchange

    def ended(self, exchange: Exchange) -> None:
        """The request is over: let others in."""
        self.open.discard(exchange)
        self.waiting.discard(exchange)
        record = exchange.record
        first_byte = record.first_byte - record.started if record.first_byte else 0.0
        self.figures.ended(record.outcome, record.path, record.ended - record.started, first_byte)
        if exchange.offered:
            number = exchange.ask.number
            self.queued.pop(number, None)
            tokens = exchange.tokens_used() if self.admission.counts(number) else 0
            self.admission.leave(number, tokens, record.ended)
            if self.queued:
                self.loop.call_soon(self.let_in)
        if self.on_end is not None:
            self.on_end(record)
        if self._idle is not None and not self.open:
            self._idle.set()

    def leave_alone(self, leg: Leg) -> None:
        """Nobody waits for the rest of this leg; let it end by itself for a while, so that its connection lives on."""
        if not leg.done:
            leg.owner = NOBODY
            self._alone.append((self.now() + ALONE_SECONDS, leg))

    def let_in(self) -> None:
        """Those whom admission lets go on, go on; those it sheds are refused."""
        now = self.now()
        for number in self.admission.shed(now):
            exchange = self.queued.pop(number, None)
            if exchange is not None:
                exchange.expire(
                    Unavailable("the server is overloaded; try again later", retry_after=self.admission.retry_after)
                )
        for number in self.admission.admit(now):
            exchange = self.queued.pop(number, None)
            if exchange is not None:
                exchange.admitted()

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run something beside the requests."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait_idle(self) -> None:
        """Return once no request is open."""
        self._idle = asyncio.Event()
        if self.open:
            await self._idle.wait()

    # Workers

    def update(self, view: View) -> None:
        """Take over a view; requests on workers that are gone for good are told so."""
        router, fleet = self.router, self.router.fleet
        for endpoint in fleet.update(view.entries.values()):
            delay = 0.0 if fleet.replaced(endpoint) else ABSENCE_LIMIT
            self.loop.call_later(delay, self._give_up, endpoint)
        router.seen()
        for endpoint in fleet.endpoints.values():
            if endpoint.status.state is State.DRAINING:
                _move_away(endpoint)
        self.fleet_changed()

    def fleet_changed(self) -> None:
        """Who waits for a worker, or is at one where nothing moves, may go to another now."""
        for endpoint in list(self.router.fleet.endpoints.values()):
            if endpoint.status.state is State.STALLED:
                _stand_still(endpoint, "its scheduler stands still")
            elif not endpoint.responsive:
                _stand_still(endpoint, "it does not answer health checks")
        for exchange in list(self.waiting):
            exchange.fleet_changed()

    def set_responsive(self, endpoint: Endpoint, responsive: bool) -> None:
        """What a health check found. Requests on a worker that no longer answers go elsewhere."""
        if endpoint.responsive == responsive:
            return
        log.info("worker answers" if responsive else "worker does not answer", extra=fields(worker=endpoint.id))
        endpoint.responsive = responsive
        self.router.fleet.regroup()
        self.fleet_changed()

    def _give_up(self, endpoint: Endpoint) -> None:
        if endpoint.legs and self.router.fleet.lives_on(endpoint):  # its process ends what it began
            self.loop.call_later(ABSENCE_LIMIT, self._give_up, endpoint)
            return
        if not self.router.fleet.expire(endpoint):
            return
        log.info("worker gone", extra=fields(worker=endpoint.id, requests=len(endpoint.legs)))
        endpoint.pool.close()
        self.router.forget(endpoint)
        _fail_legs(endpoint, "it left the bootstrap server's view")

    def leg_lost(self, leg: Leg, decision: Decision | None) -> None:
        """Hold a loss against the worker; an error that it answered against the link, for it may be the other's."""
        self.figures.lost(leg.name)
        now = self.now()
        endpoint = leg.endpoint
        route = None if decision is None else decision.route
        if leg.refusal is not None and route is not None and route.prefill is not None:
            self.router.links.failed((route.prefill.incarnation, route.decode.incarnation), now)
        elif self.router.workers.failed(endpoint.incarnation, now):
            log.info("circuit open", extra=fields(worker=endpoint.id, reason=leg.failure))

    def pair_worked(self, decision: Decision | None) -> None:
        router = self.router
        if decision is None or not router.troubled:
            return
        route = decision.route
        router.workers.succeeded(route.decode.incarnation)
        if route.prefill is not None:
            router.workers.succeeded(route.prefill.incarnation)
            router.links.succeeded((route.prefill.incarnation, route.decode.incarnation))

    def gauges(self, connected: int, connections: int) -> dict[str, dict[tuple[str, ...], float]]:
        """What stands now, by metric and label values."""
        now, fleet = self.now(), self.router.fleet
        workers = Tally[tuple[str, ...]]((one.worker.role, one.status.state) for one in fleet.endpoints.values())
        waiting = len(self.queued) + len(self.waiting)
        return {
            "baton_gateway_workers": dict(workers),
            "baton_gateway_legs": {(one.id,): len(one.legs) for one in fleet.endpoints.values()},
            "baton_gateway_open_requests": {("waiting",): waiting, ("running",): len(self.open) - waiting},
            "baton_gateway_queued_requests": {(name,): count for name, count in self.admission.gauges().items()},
            "baton_gateway_open_circuits": {
                ("worker",): len(self.router.workers.open_keys(now)),
                ("link",): len(self.router.links.open_keys(now)),
            },
            "baton_gateway_connections": {(): connections},
            "baton_gateway_bootstrap_servers": {(): connected},
        }

    # Time

    def look(self) -> None:
        """To be called every `LOOK_EVERY` seconds: deadlines, and workers that have fallen silent in mid-answer."""
        now = self.now()
        while self._alone and self._alone[0][0] < now:
            self._alone.popleft()[1].release()
        if self.queued:
            self.let_in()
        for exchange in list(self.open):
            if exchange.deadline and now > exchange.deadline:
                assert exchange.ask.timeout is not None
                exchange.expire(DeadlineExceeded(f"the request did not end within {exchange.ask.timeout:g} s"))
            else:
                self._check_silence(exchange)

    def _check_silence(self, exchange: Exchange) -> None:
        for leg in (exchange.prefill, exchange.decode, exchange.taker):
            if leg is None or leg.done:
                continue
            looks, half = leg.quiet
            silent = looks * LOOK_EVERY
            limit = self._patience.stall if leg.saw_bytes else self._patience.first_byte
            if half and silent > self._patience.half:
                leg.fail(f"sent half of something, then nothing for {self._patience.half:g} s")
            elif silent > limit:
                leg.fail(f"was silent for {limit:g} s")
            if exchange.phase is Phase.ENDED:
                return


class MethodNotAllowed(InvalidRequest):
    status = 405
    code = "method_not_allowed"


def _fail_legs(endpoint: Endpoint, reason: str) -> None:
    for leg in list(endpoint.legs):
        leg.fail(reason)


def _stand_still(endpoint: Endpoint, reason: str) -> None:
    for leg in list(endpoint.legs):
        leg.owner.worker_stands_still(leg, reason)


def _move_away(endpoint: Endpoint) -> None:
    """A draining worker lets its requests end; those that stream may be taken over before."""
    for leg in list(endpoint.legs):
        leg.owner.worker_drains(leg)
