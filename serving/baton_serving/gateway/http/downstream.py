"""Clients' connections: HTTP/1.1 requests in, whole answers or streams of chunks out, in order.

Parsing is llhttp's, in its strict mode. What it lets through and we do not: other transfer codings than chunked,
chunked bodies of HTTP/1.0, more or less than one host, and trailers that look like headers.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import NoReturn, Protocol, cast

import httptools

from baton_serving.errors import BatonError, InvalidRequest, TooLarge
from baton_serving.gateway.http.bodies import Bodies
from baton_serving.gateway.http.framing import LAST_CHUNK, unframe
from baton_serving.gateway.replies import error_reply

HEAD_LIMIT = 64 * 1024
WRITE_WINDOW = 256 * 1024  # bytes a slow client may lag behind before the worker is no longer read
LINGER = 2.0  # seconds that a refused client's bytes are still read, and dropped
AHEAD_LIMIT = 16  # requests read ahead of the one that is being answered

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_STATUS_LINES[499] = b"HTTP/1.1 499 Client Closed Request\r\n"
_CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
_LARGE_HEAD = f"the headers are larger than {HEAD_LIMIT} bytes"
_HOSTS = "there must be one host header"


class Incoming:
    """One request as it came in. Header names are in lower case; of repeated ones the last counts."""

    __slots__ = ("body", "headers", "held", "keep_alive", "method", "path", "query", "version")

    def __init__(
        self, method: bytes, target: bytes, version: str, headers: dict[bytes, bytes], keep_alive: bool
    ) -> None:
        path, _, self.query = target.partition(b"?")
        self.path = path.decode("latin-1")
        self.method = method.decode("latin-1")
        self.version = version
        self.headers = headers
        self.keep_alive = keep_alive
        self.body: bytes | bytearray = b""
        self.held = 0  # bytes that it takes up among all bodies, until it is answered


class Session(Protocol):
    """What answers one request; it is told about its client."""

    def client_gone(self) -> None: ...

    def pause(self) -> None:
        """The client lags behind: write as little as possible until `resume`."""
        ...

    def resume(self) -> None: ...


Dispatch = Callable[[Incoming, "ClientConnection"], Session | None]


class ClientConnection(asyncio.Protocol):
    """One connection. Requests that come while another is answered wait; their number is bounded.

    The session answers through `reply`, or `begin`, `relay`, `write`, `end`, and `abort`. After the end it is
    forgotten.
    """

    __slots__ = (
        *("_answering", "_bodies", "_body", "_connections", "_dispatch", "_head_size", "_incoming", "_lines"),
        *("_lagging", "_parser", "_reading_paused", "_refusal", "_target", "_transport"),
        *("_waiting", "begun", "closing", "idle_ticks", "session"),
    )

    def __init__(self, dispatch: Dispatch, connections: set[ClientConnection], bodies: Bodies) -> None:
        self.session: Session | None = None
        self.closing = False  # after the current answer, when there is one
        self.idle_ticks = 0  # looks since something happened; whoever looks counts up
        self.begun = False  # the current answer
        self._lagging = False
        self._answering: Incoming | None = None
        self._dispatch = dispatch
        self._connections = connections
        self._bodies = bodies
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: list[Incoming] = []  # at most `AHEAD_LIMIT`
        self._reading_paused = False
        self._target = b""
        self._lines: list[tuple[bytes, bytes]] = []  # header names and values as they came
        self._body: bytes | bytearray = b""
        self._incoming: Incoming | None = None
        self._head_size = 0
        self._refusal: BatonError | None = None

    @property
    def idle(self) -> bool:
        return self._answering is None and not self._waiting and self._incoming is None and not self._head_size

    @property
    def lagging(self) -> bool:
        return self._lagging

    @property
    def waiting_bytes(self) -> int:
        """What the client has yet to take of what it was sent, beyond what the kernel holds."""
        return self._transport.get_write_buffer_size()

    def stop_when_idle(self) -> None:
        """Take no further request."""
        self.closing = True
        if self.idle:
            self._transport.close()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class does not derive from it
        self._transport.set_write_buffer_limits(high=WRITE_WINDOW)
        raw = transport.get_extra_info("socket")
        if raw.family != socket.AF_UNIX:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.idle_ticks = 0
        if self._refusal is not None:
            return
        if self._incoming is None:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(InvalidRequest("this server speaks HTTP/1.1 only"))
        except httptools.HttpParserError as error:
            self._refuse(self._refusal or InvalidRequest(f"malformed HTTP: {error.args[0]}"))
        else:
            if self._incoming is None and self._head_size > HEAD_LIMIT:
                self._refuse(TooLarge(_LARGE_HEAD))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        session, self.session = self.session, None
        if session is not None:
            session.client_gone()
        answering, self._answering = self._answering, None
        for unanswered in (answering, *self._waiting):
            if unanswered is not None:
                self._bodies.held -= unanswered.held
        self._waiting.clear()
        self._drop_body()

    def pause_writing(self) -> None:
        self._lagging = True
        if self.session is not None:
            self.session.pause()

    def resume_writing(self) -> None:
        self._lagging = False
        if self.session is not None:
            self.session.resume()

    # What llhttp calls

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._incoming is not None:  # a trailer
            return
        self._lines.append((name, value))

    def on_headers_complete(self) -> None:
        target, self._target = self._target, b""
        lines, self._lines = self._lines, []
        parser = self._parser
        if self._head_size > HEAD_LIMIT and sum(len(name) + len(value) for name, value in lines) > HEAD_LIMIT:
            self._stop(TooLarge(_LARGE_HEAD))  # that came in one piece with what follows it
        version = parser.get_http_version()
        if parser.should_upgrade():  # llhttp would tell only after the request was answered
            self._stop(InvalidRequest("this server speaks HTTP/1.1 only"))
        headers = {name.lower(): value for name, value in lines}
        if len(headers) < len(lines) and sum(name.lower() == b"host" for name, _ in lines) > 1:
            self._stop(InvalidRequest(_HOSTS))
        self._check(headers, version)
        path = target if target.startswith(b"/") else _path_of(target)
        self._incoming = Incoming(parser.get_method(), path, version, headers, parser.should_keep_alive())
        self._head_size = 0
        if b"expect" in headers and self._answering is None and headers[b"expect"].lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        begun = self._body
        error = self._bodies.refusal(len(begun) + len(body), counted=len(begun))
        if error is not None:
            self._drop_body()
            self._stop(error)
        self._bodies.held += len(body)
        if not begun:
            self._body = body
        elif isinstance(begun, bytearray):
            begun += body
        else:  # in several pieces: one buffer that grows where it is
            self._body = bytearray(begun)
            self._body += body

    def on_message_complete(self) -> None:
        incoming, self._incoming = self._incoming, None
        assert incoming is not None
        incoming.body, self._body = self._body, b""
        incoming.held = len(incoming.body)
        if self._answering is None:
            self._answer(incoming)
            return
        self._waiting.append(incoming)
        if len(self._waiting) >= AHEAD_LIMIT and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def _check(self, headers: dict[bytes, bytes], version: str) -> None:
        if version not in ("1.1", "1.0"):
            self._stop(InvalidRequest("only HTTP/1.1 and HTTP/1.0 are spoken here"))
        if b"host" not in headers and version == "1.1":
            self._stop(InvalidRequest(_HOSTS))
        coding = headers.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or version == "1.0"):
            self._stop(InvalidRequest("the only transfer-encoding taken is chunked, of HTTP/1.1"))
        declared = headers.get(b"content-length")
        error = None if declared is None else self._bodies.refusal(int(declared))
        if error is not None:
            self._stop(error)

    def _drop_body(self) -> None:
        """Let go what came of a body that will never be whole."""
        self._bodies.held -= len(self._body)
        self._body = b""

    def _stop(self, error: BatonError) -> NoReturn:
        """End parsing from within a callback; llhttp reports whatever is raised as an error of its own."""
        self._refusal = error
        raise error

    # What the session calls

    def reply(self, status: int, lines: bytes, body: bytes) -> None:
        """A whole answer. `lines` are header lines, each ended by CRLF."""
        close = self._will_close()
        self.begun = True
        head = _STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status
        extra = b"connection: close\r\n" if close else b""
        shown = b"" if self._answering is not None and self._answering.method == "HEAD" else body
        self._transport.write(b"%b%b%bcontent-length: %d\r\n\r\n%b" % (head, lines, extra, len(body), shown))
        self._end_answer(close)

    def begin(self, status: int, lines: bytes, chunks: bytes) -> None:
        """Begin a stream with its first chunks, in one write."""
        self.begun = True
        head = _STATUS_LINES[status] + lines
        if self._answering is not None and self._answering.version == "1.0":
            self._transport.write(head + b"connection: close\r\n\r\n" + unframe(chunks))
        elif self._will_close():
            self._transport.write(head + b"connection: close\r\n" + _CHUNKED + chunks)
        else:
            self._transport.write(head + _CHUNKED + chunks)

    def relay(self, chunks: bytes) -> None:
        """Go on with chunks as they are."""
        if self._answering is not None and self._answering.version == "1.0":
            chunks = unframe(chunks)
        self._transport.write(chunks)

    def end(self) -> None:
        """End a stream well."""
        close = self._will_close()
        if self._answering is not None and self._answering.version != "1.0":
            self._transport.write(LAST_CHUNK)
        self._end_answer(close)

    def close(self) -> None:
        """Whatever is under way."""
        self._transport.close()

    def abort(self) -> None:
        """Cut the client off: it must not take the answer for whole."""
        self.session = None
        self._transport.abort()

    def _will_close(self) -> bool:
        answering = self._answering
        if self._refusal is not None:
            return False
        return self.closing or answering is None or not answering.keep_alive or answering.version == "1.0"

    def _end_answer(self, close: bool) -> None:
        self.session = None
        answered, self._answering = self._answering, None
        if answered is not None:
            self._bodies.held -= answered.held
        self.idle_ticks = 0
        if self._refusal is not None:
            self._say_refusal()
        elif close:
            self.closing = True
            self._transport.close()
        elif self._waiting:
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        if self._answering is not None or not self._waiting or self._transport.is_closing():
            return
        self._answer(self._waiting.pop(0))
        if self._reading_paused and len(self._waiting) < AHEAD_LIMIT // 2:
            self._reading_paused = False
            self._transport.resume_reading()

    def _answer(self, incoming: Incoming) -> None:
        if self.closing and self._transport.is_closing():
            self._bodies.held -= incoming.held
            return
        self._answering = incoming
        self.begun = False
        session = self._dispatch(incoming, self)
        if self._answering is incoming:  # else it is over already
            self.session = session

    def _refuse(self, error: BatonError) -> None:
        """The request cannot be read, and nothing after it either: say so once earlier ones are answered."""
        self._refusal = error
        self.closing = True
        self._drop_body()
        if self._answering is None:
            self._say_refusal()

    def _say_refusal(self) -> None:
        """Reply, and read on for a moment: a client that still sends would lose the reply to a reset."""
        assert self._refusal is not None
        reply = error_reply(self._refusal)
        head = b"%b%bconnection: close\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % (_STATUS_LINES[reply.status], reply.lines, len(reply.body)) + reply.body)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER, self._transport.abort)


def _path_of(target: bytes) -> bytes:
    """The path and query of a request target that is a whole URL."""
    _, _, rest = target.partition(b"://")
    slash = rest.find(b"/")
    return rest[slash:] if slash >= 0 else b"/"
