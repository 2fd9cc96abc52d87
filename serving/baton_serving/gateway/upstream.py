"""A small HTTP/1.1 client: keep-alive connections to one worker, on asyncio protocols, with callbacks."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

CONNECT_TIMEOUT = 2.0  # seconds
IDLE_LIMIT = 4.0  # seconds; below the 5 after which common servers close an idle connection

Headers = list[tuple[bytes, bytes]]


class Listener(Protocol):
    """Hears one response: a head, any number of bodies, then `on_end` or, at any time, `on_lost`."""

    def on_head(self, status: int, headers: Headers) -> None: ...

    def on_body(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_lost(self, reason: str) -> None: ...


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, pool: Pool) -> None:
        self.idle_since = 0.0
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._listener: Listener | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: Headers = []
        self._headed = False
        self._ends_with_connection = False

    @property
    def alive(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, listener: Listener, request: bytes) -> None:
        """Send a whole request; `listener` hears the response."""
        assert self._transport is not None
        self._listener = listener
        self._headers = []
        self._headed = False
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)

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

    def data_received(self, data: bytes) -> None:
        if self._listener is None:
            self.drop()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._lose(f"sent what is not HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        if self._headed and self._ends_with_connection and exc is None:
            self.on_message_complete()
        else:
            self._lose(f"connection lost: {exc}" if exc else "connection closed in mid-reply")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._headed = True
        names = {name for name, _ in self._headers}
        self._ends_with_connection = not names & {b"content-length", b"transfer-encoding"}
        if self._listener is not None:
            self._listener.on_head(self._parser.get_status_code(), self._headers)

    def on_body(self, body: bytes) -> None:
        if self._listener is not None:
            self._listener.on_body(body)

    def on_message_complete(self) -> None:
        listener, self._listener = self._listener, None
        if self.alive and self._parser.should_keep_alive() and not self._ends_with_connection:
            self._pool.give_back(self)
        elif self._transport is not None:
            self._transport.close()
        if listener is not None:
            listener.on_end()

    def _lose(self, reason: str) -> None:
        listener, self._listener = self._listener, None
        if self._transport is not None:
            self._transport.abort()
        if listener is not None:
            listener.on_lost(reason)


class Pool:
    """Idle connections to one worker; as many as its requests need, none kept longer than `IDLE_LIMIT`."""

    def __init__(self, url: str) -> None:
        """`url` is `http://host:port`. Raises ValueError when it is not."""
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"a worker's URL must be http://host:port, not {url!r}")
        self.host = parts.hostname
        self.port = parts.port or 80
        self.authority = parts.netloc.encode("ascii")
        self._idle: list[Connection] = []

    def take(self) -> Connection | None:
        """The connection used last, if one is idle."""
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.alive and now - connection.idle_since < IDLE_LIMIT:
                return connection
            connection.drop()
        return None

    async def connect(self) -> Connection:
        """A new connection. Raises OSError, which includes TimeoutError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT):
            _, connection = await loop.create_connection(lambda: Connection(self), self.host, self.port)
        return connection

    def give_back(self, connection: Connection) -> None:
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Drop the idle connections; those in use go on."""
        for connection in list(self._idle):
            connection.drop()
        self._idle.clear()
