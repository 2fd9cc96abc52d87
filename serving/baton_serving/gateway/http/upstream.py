"""Keep-alive connections to one worker, on asyncio protocols, with callbacks."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from typing import Protocol, cast
from urllib.parse import urlsplit

from baton_bootstrap.tls import PEER_NAME, Tls
from baton_serving.gateway.http.framing import ChunkedBody, ChunkedEvents, Garbage, PlainEvents
from baton_serving.gateway.http.head import HEAD_LIMIT, Head, read_head

CONNECT_TIMEOUT = 2.0  # seconds
IDLE_LIMIT = 4.0  # seconds; below the 5 after which common servers close an idle connection
REPLY_LIMIT = 64 * 1024 * 1024  # bytes of a reply that is no event stream


class Listener(Protocol):
    """Hears one response: a head; events or nothing; then `on_end` or, at any time, `on_lost`."""

    def on_head(self, head: Head) -> bool:
        """True when the body is to come as events, False when it is wanted whole."""
        ...

    def on_events(self, chunks: bytes) -> None:
        """Whole events in chunks, framed for the client."""
        ...

    def on_end(self, body: bytes) -> None:
        """The response is over; `body` is empty after events."""
        ...

    def on_lost(self, reason: str) -> None: ...


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    __slots__ = (
        *("_begun", "_chunked", "_events", "_head", "_listener", "_missing", "_parts", "_pool", "_transport"),
        *("idle_since", "quiet"),
    )

    def __init__(self, pool: Pool) -> None:
        self.idle_since = 0.0
        self.quiet = 0  # looks since something arrived; whoever looks counts up
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._listener: Listener | None = None
        self._head: Head | None = None
        self._begun = b""  # of a head that is not whole yet
        self._events: ChunkedEvents | PlainEvents | None = None
        self._chunked: ChunkedBody | None = None
        self._parts: list[bytes] = []
        self._missing = 0

    @property
    def alive(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def partial(self) -> bool:
        """Whether a piece has begun to arrive that is of no use yet: more must come soon."""
        if self._head is None:
            return bool(self._begun)
        return self._events is None or self._events.partial

    def send(self, listener: Listener, request: Sequence[bytes | memoryview]) -> None:
        """Send a whole request, given in pieces; `listener` hears the response."""
        assert self._transport is not None
        self._listener = listener
        self._head = None
        self.quiet = 0
        if len(request) == 1:
            self._transport.write(request[0])
        else:
            self._transport.writelines(request)

    def pause(self) -> None:
        if self.alive and self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self.alive and self._transport is not None:
            self._transport.resume_reading()

    def drop(self) -> None:
        """Close at once, whatever is under way; the listener hears nothing more."""
        self._listener = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class does not derive from it
        raw = transport.get_extra_info("socket")
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        if self._listener is None:
            self.drop()
            return
        self.quiet = 0
        try:
            if self._head is not None:
                self._take_body(data)
            else:
                self._take_head(data)
        except Garbage as error:
            self._lose(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        head = self._head
        if exc is None and head is not None and head.length is None and not head.chunked:
            self._finish(b"".join(self._parts))
        elif self._listener is not None:
            self._lose(f"connection lost: {exc}" if exc else "it closed the connection")

    def _take_head(self, data: bytes) -> None:
        data = self._begun + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > HEAD_LIMIT:
                raise Garbage(f"sent more than {HEAD_LIMIT} bytes without the end of a head")
            self._begun = data
            return
        self._begun = b""
        head = read_head(data[:end])
        if head.status < 200:
            self._take_head(data[end + 4 :])
            return
        self._head = head
        assert self._listener is not None
        self._events = self._chunked = None
        begun = data[end + 4 :]
        events = self._listener.on_head(head)
        if self._listener is None:  # lost interest when it saw the head
            return
        if events:
            self._events = ChunkedEvents() if head.chunked else PlainEvents(head.length)
        elif head.chunked:
            self._chunked = ChunkedBody(REPLY_LIMIT)
        elif head.length == len(begun):
            self._finish(begun)
            return
        else:
            self._parts = []
            self._missing = REPLY_LIMIT if head.length is None else head.length
            if self._missing > REPLY_LIMIT:
                raise Garbage(f"answers with more than {REPLY_LIMIT} bytes")
        if begun or head.length == 0:
            self._take_body(begun)

    def _take_body(self, data: bytes) -> None:
        listener = self._listener
        assert listener is not None
        if self._events is not None:
            chunks = self._events.feed(data)
            if chunks:
                listener.on_events(chunks)
            if self._events.ended:
                self._finish(b"")
        elif self._chunked is not None:
            self._chunked.feed(data)
            if self._chunked.ended:
                self._finish(self._chunked.body)
        else:
            self._take_plain(data)

    def _take_plain(self, data: bytes) -> None:
        assert self._head is not None
        self._missing -= len(data)
        if self._missing < 0:
            raise Garbage("sent bytes after the end of its answer")
        if self._missing or self._head.length is None:
            self._parts.append(data)
        else:
            self._finish(b"".join((*self._parts, data)) if self._parts else data)

    def _finish(self, body: bytes) -> None:
        listener, self._listener = self._listener, None
        assert self._head is not None
        if self._head.keep_alive:
            self._pool.give_back(self)
        elif self._transport is not None:
            self._transport.close()
        if listener is not None:
            listener.on_end(body)

    def _lose(self, reason: str) -> None:
        listener, self._listener = self._listener, None
        if self._transport is not None:
            self._transport.abort()
        if listener is not None:
            listener.on_lost(reason)


class Pool:
    """Idle connections to one worker; as many as its requests need, none kept longer than `IDLE_LIMIT`."""

    def __init__(self, url: str, tls: Tls | None = None, key: str | None = None) -> None:
        """`url` is `http://host:port`, or with `tls` `https://host:port`; `key` is the worker's API key.

        Raises ValueError when `url` is not such a URL.
        """
        parts = urlsplit(url)
        scheme = "http" if tls is None else "https"
        if parts.scheme != scheme or parts.hostname is None:
            raise ValueError(f"a worker's URL must be {scheme}://host:port, not {url!r}")
        self.host = parts.hostname
        self.port = parts.port or (80 if tls is None else 443)
        self._tls = tls
        self.host_line = b"host: %b\r\n" % parts.netloc.encode("ascii")
        if key is not None:  # a line of its own, in the head of every request like the host's
            self.host_line += b"authorization: Bearer %b\r\n" % key.encode("ascii")
        self._idle: list[Connection] = []

    def take(self) -> Connection | None:
        """The connection used last, if one is idle."""
        now = time.monotonic()
        while self._idle:
            connection = self._idle.pop()
            if now - connection.idle_since < IDLE_LIMIT and connection.alive:
                return connection
            connection.drop()
        return None

    async def connect(self) -> Connection:
        """A new connection. Raises OSError, which includes TimeoutError."""
        async with asyncio.timeout(CONNECT_TIMEOUT):
            loop = asyncio.get_running_loop()
            tls, name = (None, None) if self._tls is None else (self._tls.client, PEER_NAME)
            _, connection = await loop.create_connection(
                lambda: Connection(self), self.host, self.port, ssl=tls, server_hostname=name
            )
        return connection

    def give_back(self, connection: Connection) -> None:
        """Its answer is over."""
        connection.idle_since = time.monotonic()
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Drop the idle connections; those in use go on."""
        for connection in list(self._idle):
            connection.drop()
        self._idle.clear()
