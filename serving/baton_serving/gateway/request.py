"""Carries one request through its life: feeds events to the table and does what the table says."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import assert_never

from baton_serving.errors import BatonError, QueueFull, Unavailable
from baton_serving.gateway.ask import REQUEST_ID, Ask
from baton_serving.gateway.fleet import Endpoint, Route
from baton_serving.gateway.leg import Inbox, Leg
from baton_serving.gateway.lifecycle import Action, Event, Phase, advance
from baton_serving.gateway.metrics import Metrics
from baton_serving.gateway.replies import Reply, error_event, error_reply
from baton_serving.gateway.routing import Router
from baton_serving.gateway.upstream import Headers

ROUTE_HEADER = b"x-baton-route"
ATTEMPTS_HEADER = b"x-baton-attempts"

SECOND_CHANCE = 0.1  # seconds before a worker that answered an error is asked again, when there is no other

_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"server", b"date", REQUEST_ID}
)


class Client:
    """The client's side of one request, over an ASGI `send`."""

    def __init__(self, send: Callable[[dict[str, object]], Awaitable[None]]) -> None:
        self._send = send
        self.status = 0

    async def begin(self, status: int, headers: Headers) -> None:
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes) -> None:
        """Returns when the client has room for more."""
        if data:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def reply(self, reply: Reply, headers: Headers) -> None:
        await self.begin(reply.status, [*reply.headers, *headers, (b"content-length", b"%d" % len(reply.body))])
        await self._send({"type": "http.response.body", "body": reply.body, "more_body": False})


class Request:
    """One client request; `run` returns when the client has its terminal reply or is gone, with both legs released."""

    def __init__(self, ask: Ask, router: Router, client: Client, inbox: Inbox, metrics: Metrics) -> None:
        self._ask = ask
        self._router = router
        self._client = client
        self._inbox = inbox
        self._metrics = metrics
        self._attempts = 0
        self._lost: frozenset[Endpoint] = frozenset()  # not asked again
        self._shunned: frozenset[Endpoint] = frozenset()  # asked again only after a pause
        self._route: Route | None = None
        self._prefill: Leg | None = None
        self._decode: Leg | None = None
        self._failure: BatonError | Reply | None = None
        self._started = time.perf_counter()

    async def run(self) -> None:
        phase = Phase.QUEUED
        try:
            while phase is not Phase.ENDED:
                event = await (self._next_route() if phase is Phase.QUEUED else self._inbox.get())
                phase, action = advance(phase, event)
                await self._act(action)
        finally:
            self._release()

    async def _act(self, action: Action) -> None:
        match action:
            case Action.NONE:
                pass
            case Action.SEND:
                self._send()
            case Action.RETRY:
                self._note_failure()
                self._release()
            case Action.FORWARD:
                await self._forward()
            case Action.FINISH:
                await self._finish()
            case Action.PASS_REFUSAL:
                await self._pass_refusal()
            case Action.REPLY_FAILURE:
                await self._reply(self._failure or self._nowhere())
            case Action.BREAK_OFF:
                await self._break_off()
            case Action.RELEASE:
                self._release()
                self._record_end("client_gone")
            case _:
                assert_never(action)

    async def _next_route(self) -> Event:
        """Wait, within bounds, until some worker can take the request."""
        deadline = time.monotonic() + self._router.config.worker_wait
        with self._router.waiting(self._inbox):
            while True:
                event = self._inbox.pop()
                if event is not None:
                    return event
                if self._attempts >= self._router.config.attempts:
                    return Event.NO_ROUTE
                self._route = self._router.route(self._ask.model, self._lost | self._shunned)
                if self._route is not None:
                    return Event.ROUTED
                left = deadline - time.monotonic()
                full = isinstance(self._failure, Reply) and self._failure.status == QueueFull.status
                if full or left <= 0:
                    return Event.NO_ROUTE
                await self._inbox.wait(min(left, SECOND_CHANCE) if self._shunned else left)
                self._shunned = frozenset()

    def _send(self) -> None:
        route = self._route
        assert route is not None
        self._attempts += 1
        payload = self._ask.payload(route, self._attempts - 1)
        self._decode = Leg(route.decode, "decode", self._inbox)
        self._decode.start(self._ask.request(route.decode, payload))
        if route.prefill is not None:
            self._prefill = Leg(route.prefill, "prefill", self._inbox)
            self._prefill.start(self._ask.request(route.prefill, payload))

    def _note_failure(self) -> None:
        """Remember why the attempt failed and who failed it: a stale connection says nothing against the worker.

        A worker that answers an error may only be telling that the other leg is gone, so it gets another chance.
        """
        for leg in (self._prefill, self._decode):
            if leg is not None and leg.done and (leg.failure or leg.refusal is not None):
                self._failure = leg.refusal or Unavailable(
                    f"{leg.name} worker {leg.endpoint.worker.id} was lost before the first byte: {leg.failure}",
                    retry_after=1,
                )
                if leg.refusal is not None:
                    self._shunned |= {leg.endpoint}
                elif not leg.stale:
                    self._lost |= {leg.endpoint}
                self._metrics.retries.labels(leg.name).inc()

    async def _forward(self) -> None:
        assert self._decode is not None
        data = self._decode.take()
        await self._begin()
        await self._client.write(data)

    async def _finish(self) -> None:
        assert self._decode is not None
        data = self._decode.take()
        if self._client.status == 0 and not self._decode.event_stream:
            await self._client.reply(Reply(self._decode.status, data, self._decode_headers()), self._own_headers())
        else:
            await self._begin()
            await self._client.write(data)
            await self._client.end()
        self._record_end("done")
        if self._prefill is not None:
            self._prefill.detach()
            self._prefill = None

    async def _begin(self) -> None:
        if self._client.status == 0:
            assert self._decode is not None
            self._metrics.first_byte.observe(time.perf_counter() - self._started)
            await self._client.begin(self._decode.status, [*self._decode_headers(), *self._own_headers()])

    async def _pass_refusal(self) -> None:
        refusals = [leg.refusal for leg in (self._decode, self._prefill) if leg is not None and leg.refusal is not None]
        self._release()
        await self._reply(refusals[0])

    async def _reply(self, what: BatonError | Reply) -> None:
        reply = error_reply(what) if isinstance(what, BatonError) else what
        await self._client.reply(reply, self._own_headers())
        self._record_end("refused" if reply.status < 500 and reply.status != 429 else "failed")

    async def _break_off(self) -> None:
        decode = self._decode
        assert decode is not None
        message = f"decode worker {decode.endpoint.worker.id} was lost in mid-reply: {decode.failure}"
        self._release()
        if decode.event_stream:
            await self._client.write(error_event(Unavailable(message)))
            await self._client.end()
        self._record_end("broken_off")

    def _record_end(self, outcome: str) -> None:
        self._metrics.requests.labels(outcome).inc()
        self._metrics.duration.observe(time.perf_counter() - self._started)

    def _release(self) -> None:
        for leg in (self._prefill, self._decode):
            if leg is not None:
                leg.release()
        self._prefill = self._decode = None

    def _nowhere(self) -> BatonError:
        return Unavailable(
            f"no worker was ready within {self._router.config.worker_wait:g} s; try again", retry_after=1
        )

    def _decode_headers(self) -> Headers:
        assert self._decode is not None
        return [header for header in self._decode.headers if header[0] not in _HOP_BY_HOP]

    def _own_headers(self) -> Headers:
        headers = [(REQUEST_ID, self._ask.request_id), (ATTEMPTS_HEADER, b"%d" % self._attempts)]
        if self._route is not None:
            headers.append((ROUTE_HEADER, str(self._route).encode()))
        return headers
