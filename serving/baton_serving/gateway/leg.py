"""One leg of an attempt: an HTTP exchange with one worker, turned into events for the request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal, Protocol

from baton_serving.gateway.fleet import Endpoint
from baton_serving.gateway.http.head import Head
from baton_serving.gateway.http.upstream import Connection
from baton_serving.gateway.lifecycle import Event
from baton_serving.gateway.replies import JSON_LINE, Reply, error_reply, read_error

# Statuses that another worker may not answer with; all others above 399 are the request's own fault.
RETRYABLE = frozenset({429, 500, 502, 503, 504})

_ERROR = b'data: {"error"'
_OLD_ERRORS = (b'data: {"object":"error"', b"event: error")
_DONE_MARK = b"data: [DONE]"

Name = Literal["prefill", "decode", "taker"]
LOST: dict[Name, Event] = {"prefill": Event.PREFILL_LOST, "decode": Event.DECODE_LOST, "taker": Event.TAKER_LOST}
DONE: dict[Name, Event] = {"prefill": Event.PREFILL_DONE, "decode": Event.DECODE_DONE, "taker": Event.TAKER_DONE}
REFUSED: dict[Name, Event] = {
    "prefill": Event.PREFILL_REFUSED,
    "decode": Event.DECODE_REFUSED,
    "taker": Event.TAKER_LOST,
}


class LegOwner(Protocol):
    """The request that a leg works for."""

    def leg_bytes(self, leg: Leg, chunks: bytes) -> None:
        """Whole events of decode or of a taker."""
        ...

    def leg_event(self, leg: Leg, event: Event) -> None:
        """The leg's end, or a refusal."""
        ...

    def worker_drains(self, leg: Leg) -> None:
        """The leg's worker would rather be rid of it."""
        ...

    def worker_stands_still(self, leg: Leg, reason: str) -> None:
        """The leg's worker is there, but nothing moves in it."""
        ...


class Leg:
    """Sends one request to `endpoint`; counted in `endpoint.legs` from `start` to the end.

    Ends exactly once: by itself, with an event, or by `release`, silently. `tokens` are those of the prompt that this
    worker has to compute, as far as is known.
    """

    __slots__ = (
        *("_connecting", "_connection", "_paused", "_reused", "_saw_done", "asked_to_move", "body", "done", "endpoint"),
        *("event_stream", "failure", "head", "name", "owner", "refusal", "saw_bytes", "stale", "tokens"),
    )

    def __init__(self, endpoint: Endpoint, name: Name, owner: LegOwner, tokens: int) -> None:
        self.endpoint = endpoint
        self.name: Name = name
        self.owner = owner
        self.tokens = tokens
        self.head: Head | None = None
        self.event_stream = False
        self.body = b""
        self.done = False
        self.saw_bytes = False
        self.failure = ""  # why it was lost
        self.asked_to_move = False
        self.stale = False  # lost only because an idle connection had been closed meanwhile
        self.refusal: Reply | None = None
        self._reused = False
        self._saw_done = False
        self._paused = False
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None

    def start(self, request: Sequence[bytes | memoryview]) -> None:
        """Send now on an idle connection, or as soon as a new one stands."""
        endpoint = self.endpoint
        endpoint.legs.add(self)
        endpoint.sent_tokens += self.tokens
        connection = endpoint.pool.take()
        if connection is not None:
            self._reused = True
            self._connection = connection
            connection.send(self, request)
        else:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(request))

    @property
    def quiet(self) -> tuple[int, bool]:
        """Looks since something arrived, this one included, and whether half of a piece is there."""
        connection = self._connection
        if connection is None or self._paused:
            return 0, False
        connection.quiet += 1
        return connection.quiet, connection.partial

    def pause(self) -> None:
        if self._connection is not None and not self._paused:
            self._paused = True
            self._connection.pause()

    def resume(self) -> None:
        if self._paused and self._connection is not None:
            self._paused = False
            self._connection.quiet = 0
            self._connection.resume()

    def release(self) -> None:
        """End silently: the worker sees its connection close and aborts. A second call does nothing."""
        if not self.done:
            connection, connecting = self._connection, self._connecting
            self._finish()
            if connecting is not None:
                connecting.cancel()
            if connection is not None:
                connection.drop()

    def fail(self, reason: str) -> None:
        """End as lost: someone else noticed."""
        if not self.done:
            owner = self.owner
            self.release()
            self.failure = reason
            owner.leg_event(self, LOST[self.name])

    def on_head(self, head: Head) -> bool:
        self.head = head
        status = head.status
        endpoint, name = self.endpoint, head.incarnation
        if name == endpoint.incarnation:
            endpoint.named = True
        elif name or endpoint.named:  # others never say who they are
            self.fail(f"{name or 'somebody'} answers at the address of {endpoint.incarnation}")
        if self.done:
            return False
        if not 200 <= status < 300 and status < 400:
            self.fail(f"answered {status}, which no worker should")
        self.event_stream = head.event_stream and status < 400 and self.name != "prefill"
        return self.event_stream

    def on_events(self, chunks: bytes) -> None:
        if self.done:
            return
        if _ERROR in chunks or (not self.saw_bytes and any(mark in chunks for mark in _OLD_ERRORS)):
            self._take_error(chunks)
            return
        if chunks.find(_DONE_MARK, -40) >= 0:
            self._saw_done = True
        if not self.saw_bytes:
            self._first_bytes()
        self.owner.leg_bytes(self, chunks)

    def on_end(self, body: bytes) -> None:
        if self.done:
            return
        head = self.head
        assert head is not None
        if self.event_stream and not self._saw_done:
            self.on_lost("its stream ended before the answer did")
            return
        self.body = body
        self._finish()
        if head.status < 400:
            self.owner.leg_event(self, DONE[self.name])
            return
        lines = head.relayed if b"content-type" in head.relayed else head.relayed + JSON_LINE
        self.refusal = Reply(head.status, body, lines)
        self.failure = f"answered {head.status}"
        self.owner.leg_event(self, (LOST if head.status in RETRYABLE else REFUSED)[self.name])

    def on_lost(self, reason: str) -> None:
        if self.done:
            return
        self._finish()
        self.failure = reason
        self.stale = self._reused and self.head is None
        self.owner.leg_event(self, LOST[self.name])

    def _first_bytes(self) -> None:
        """The prompt is computed: its tokens no longer wait."""
        self.saw_bytes = True
        self.endpoint.sent_tokens -= self.tokens
        self.tokens = 0

    def _take_error(self, chunks: bytes) -> None:
        """The stream ends with an error event. One that a retry may mend is a loss; any other is for the client.

        Events that came together with it are dropped: whoever goes on makes them again.
        """
        error = read_error(chunks)
        if error.retryable:
            self.fail(f"ended its stream with an error: {error.message}")
            return
        owner, begun = self.owner, self.saw_bytes
        self.release()
        self.failure = error.message
        self.refusal = error_reply(error)
        if begun:
            owner.leg_bytes(self, chunks)
            owner.leg_event(self, DONE[self.name])
        else:
            owner.leg_event(self, REFUSED[self.name])

    async def _connect(self, request: Sequence[bytes | memoryview]) -> None:
        try:
            self._connection = await self.endpoint.pool.connect()
        except OSError as error:
            self.on_lost(f"cannot connect: {str(error) or 'timed out'}")
        else:
            self._connection.send(self, request)

    def _finish(self) -> None:
        """From here on the connection is no longer this leg's: it may serve another."""
        self.done = True
        self.endpoint.legs.discard(self)
        self.endpoint.sent_tokens -= self.tokens
        self.tokens = 0
        if self._paused:
            self.resume()
        self._connection = self._connecting = None


class _Nobody:
    """Owns legs that nobody waits for."""

    def leg_bytes(self, leg: Leg, chunks: bytes) -> None:
        """Dropped."""

    def leg_event(self, leg: Leg, event: Event) -> None:
        """Not of interest."""

    def worker_drains(self, leg: Leg) -> None:
        """It will end anyway."""

    def worker_stands_still(self, leg: Leg, reason: str) -> None:
        """So be it."""


NOBODY = _Nobody()
