"""One leg of an attempt: an HTTP exchange with one worker, turned into events for the request."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Literal

from baton_serving.gateway.fleet import Endpoint
from baton_serving.gateway.lifecycle import Event
from baton_serving.gateway.replies import Reply
from baton_serving.gateway.upstream import Connection, Headers

# Statuses that another worker may not answer with; all others above 399 are the request's own fault.
RETRYABLE = frozenset({429, 500, 502, 503, 504})

WINDOW = 256 * 1024  # bytes a slow client may lag behind before the worker's socket is no longer read
WHOLE_LIMIT = 4 * 1024 * 1024  # a reply that is no event stream is held back, so that it can be retried, up to here
EVENT_LIMIT = 16 * 1024 * 1024  # a single event beyond this is garbage
REFUSAL_LIMIT = 1024 * 1024
REFUSAL_SECONDS = 5.0  # for the body of an error status
DETACHED_SECONDS = 10.0  # for a prefill reply that nobody waits for any more

_ERROR_STARTS = (b'data: {"error"', b'data: {"object":"error"', b"event: error")

Name = Literal["prefill", "decode"]
_DONE = {"prefill": Event.PREFILL_DONE, "decode": Event.DECODE_DONE}
_LOST = {"prefill": Event.PREFILL_LOST, "decode": Event.DECODE_LOST}
_REFUSED = {"prefill": Event.PREFILL_REFUSED, "decode": Event.DECODE_REFUSED}


class Inbox:
    """Events of one request in order. `poke` wakes the reader without an event."""

    def __init__(self) -> None:
        self._events: deque[tuple[Event, Leg | None]] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, event: Event, leg: Leg | None = None) -> None:
        self._events.append((event, leg))
        self.poke()

    def poke(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> Event:
        """The next event that is not of a released leg."""
        while (event := self.pop()) is None:
            await self.wait()
        return event

    def pop(self) -> Event | None:
        while self._events:
            event, leg = self._events.popleft()
            if leg is None or not leg.released:
                return event
        return None

    async def wait(self, longest: float | None = None) -> None:
        """Return at the next event or poke, or after `longest` seconds."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(longest):
                await self._waiter
        except TimeoutError:
            pass
        finally:
            self._waiter = None


class Leg:
    """Sends one request to `endpoint` and reports to `inbox`; counted in `endpoint.legs` from `start` to the end.

    Ends exactly once: by itself, with an event, or by `release`, silently.
    """

    def __init__(self, endpoint: Endpoint, name: Name, inbox: Inbox) -> None:
        self.endpoint = endpoint
        self.name = name
        self.headers: Headers = []
        self.event_stream = False
        self.done = False
        self.released = False
        self.failure = ""  # why it was lost
        self.stale = False  # lost only because an idle connection had been closed meanwhile
        self.refusal: Reply | None = None
        self._inbox = inbox
        self.status = 0
        self._reused = False
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._buffer = bytearray()
        self._cut = 0  # the buffer holds whole events up to here
        self._delivered = False
        self._paused = False

    def start(self, request: bytes) -> None:
        """Send now on an idle connection, or as soon as a new one stands."""
        self.endpoint.legs.add(self)
        connection = self.endpoint.pool.take()
        if connection is not None:
            self._reused = True
            self._connection = connection
            connection.send(self, request)
        else:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(request))

    @property
    def delivering(self) -> bool:
        """Whether the client has seen bytes of this leg."""
        return self._delivered

    def take(self) -> bytes:
        """What can go to the client: whole events, or a whole body. Reading goes on."""
        data = bytes(self._buffer[: self._cut])
        del self._buffer[: self._cut]
        self._cut = 0
        self._delivered = self._delivered or bool(data)
        self._resume()
        return data

    def release(self) -> None:
        """End silently: the worker sees its connection close and aborts. A second call does nothing."""
        self.released = True
        self._cut_off()

    def detach(self) -> None:
        """Nobody waits for the rest of this leg; let it end by itself for a while, so that its connection lives on."""
        if not self.done:
            self._set_timer(DETACHED_SECONDS, self.release)

    def fail(self, reason: str) -> None:
        """End as lost: the worker is gone, as someone else noticed."""
        if not self.done:
            self._cut_off()
            self.on_lost(reason)

    def on_head(self, status: int, headers: Headers) -> None:
        self.status = status
        self.headers = headers
        kind = next((value for name, value in headers if name == b"content-type"), b"")
        self.event_stream = kind.startswith(b"text/event-stream")
        if not 200 <= status < 300 and status < 400:
            self.fail(f"answered {status}, which no worker should")
        elif status >= 400:
            self._set_timer(REFUSAL_SECONDS, lambda: self.fail(f"answered {status} and stalled"))

    def on_body(self, data: bytes) -> None:
        if self.name == "prefill" and self.status < 400:
            return
        self._buffer += data
        if self.status >= 400:
            if len(self._buffer) > REFUSAL_LIMIT:
                self.fail(f"answered {self.status} with more than {REFUSAL_LIMIT} bytes")
        elif self.event_stream:
            self._take_in_events(len(data))
        elif len(self._buffer) > WHOLE_LIMIT:
            self._offer(len(self._buffer))

    def on_end(self) -> None:
        self._finish()
        self._cut = len(self._buffer)
        if self.status < 400:
            self._inbox.put(_DONE[self.name], self)
            return
        kept = [header for header in self.headers if header[0] in (b"content-type", b"retry-after")]
        self.refusal = Reply(self.status, bytes(self._buffer), kept)
        self.failure = f"answered {self.status}"
        self._inbox.put((_LOST if self.status in RETRYABLE else _REFUSED)[self.name], self)

    def on_lost(self, reason: str) -> None:
        self._finish()
        self.failure = reason
        self.stale = self._reused and self.status == 0
        self._inbox.put(_LOST[self.name], self)

    async def _connect(self, request: bytes) -> None:
        try:
            self._connection = await self.endpoint.pool.connect()
        except OSError as error:
            self.on_lost(f"cannot connect: {str(error) or 'timed out'}")
        else:
            self._connection.send(self, request)

    def _take_in_events(self, arrived: int) -> None:
        cut = _end_of_last_event(self._buffer, max(0, len(self._buffer) - arrived - 3))
        if cut:
            if not self._delivered and self._cut == 0 and self._buffer.startswith(_ERROR_STARTS):
                self.fail(f"began its stream with an error: {bytes(self._buffer[:200])!r}")
            else:
                self._offer(cut)
        elif len(self._buffer) - self._cut > EVENT_LIMIT:
            self.fail(f"sent an event of more than {EVENT_LIMIT} bytes")

    def _offer(self, cut: int) -> None:
        if self._cut == 0:
            self._inbox.put(Event.DECODE_BYTES, self)
        self._cut = cut
        if cut > WINDOW and self._connection is not None and not self._paused:
            self._paused = True
            self._connection.pause()

    def _resume(self) -> None:
        if self._paused and self._connection is not None:
            self._paused = False
            self._connection.resume()

    def _cut_off(self) -> None:
        connection = self._connection
        self._finish()
        if self._connecting is not None:
            self._connecting.cancel()
        if connection is not None:
            connection.drop()

    def _finish(self) -> None:
        """From here on the connection is no longer this leg's: it may serve another."""
        self.done = True
        self.endpoint.legs.discard(self)
        self._resume()
        self._connection = None
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self, seconds: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, callback)


def _end_of_last_event(buffer: bytearray, start: int) -> int:
    """Offset past the last empty line at or after `start`; 0 when there is none."""
    found = ((buffer.rfind(mark, start), len(mark)) for mark in (b"\n\n", b"\r\n\r\n"))
    return max((at + size for at, size in found if at >= 0), default=0)
