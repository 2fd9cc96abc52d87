"""Chunked transfer coding (RFC 9112, section 7.1) of event streams, relayed as it came.

What a worker sends as chunks goes to the client as the same chunks: only their lengths are read, and where an event
ends. Bytes are let through up to the last chunk that ends with a whole event, so a worker may be lost at any moment
and the client has nothing half.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

EVENT_LIMIT = 16 * 1024 * 1024  # bytes of a single event, beyond which it is garbage
LAST_CHUNK = b"0\r\n\r\n"

_SIZE = re.compile(rb"([0-9a-fA-F]{1,8})(?:[ \t]*;[^\r\n]{0,256})?\r\n")
_LONGEST_SIZE_LINE = 300
_EVENT_ENDS = (b"\n\n", b"\n\r\n")


class Garbage(Exception):
    """The peer does not speak HTTP as it should; the message says what it did, for logs."""


class ChunkedEvents:
    """Reads a chunked event stream. `ended` once the last chunk was read; `partial` while it holds half an event."""

    __slots__ = ("_at", "_rest", "ended")

    def __init__(self) -> None:
        self.ended = False
        self._rest = b""
        self._at = 0  # start of the first chunk of the rest that is not whole yet

    @property
    def partial(self) -> bool:
        return bool(self._rest)

    def feed(self, data: bytes) -> bytes:
        """The chunks that may go on to the client, framed as they came. Raises Garbage."""
        if self._rest:
            data = self._rest + data
        at, cut, total = self._at, 0, len(data)
        while at < total:
            size_line = _SIZE.match(data, at)
            if size_line is None:
                _check_size_line(data, at)
                break
            start = size_line.end()
            size = int(size_line[1], 16)
            end = start + size + 2
            if end > total:
                if size > EVENT_LIMIT:
                    raise Garbage(f"sent a chunk of {size} bytes")
                break
            if data[end - 2 : end] != b"\r\n":
                raise Garbage("sent a chunk that does not end where it should")
            if size == 0:
                self._end(data, end, total)
                break
            at = end
            if data.endswith(_EVENT_ENDS, start, end - 2):
                cut = end
        self._at = at - cut
        self._rest = data[cut:]
        if len(self._rest) > EVENT_LIMIT:
            raise Garbage(f"sent an event of more than {EVENT_LIMIT} bytes")
        return data[:cut] if cut != total else data

    def _end(self, data: bytes, end: int, total: int) -> None:
        if end != total:
            raise Garbage("sent bytes after the end of its answer")
        self.ended = True


class PlainEvents:
    """Reads an event stream of `length` bytes, or one whose end is the connection's; same interface, framed anew."""

    def __init__(self, length: int | None = None) -> None:
        self.ended = length == 0
        self._missing = length
        self._rest = b""

    @property
    def partial(self) -> bool:
        return bool(self._rest)

    def feed(self, data: bytes) -> bytes:
        if self._missing is not None:
            self._missing -= len(data)
            if self._missing < 0:
                raise Garbage("sent bytes after the end of its answer")
            self.ended = self._missing == 0
        data = self._rest + data
        cut = max(data.rfind(mark) + len(mark) if mark in data else 0 for mark in _EVENT_ENDS)
        self._rest = data[cut:]
        if len(self._rest) > EVENT_LIMIT:
            raise Garbage(f"sent an event of more than {EVENT_LIMIT} bytes")
        return frame(data[:cut]) if cut else b""


class ChunkedBody:
    """Reads a chunked body that is wanted whole. Raises Garbage beyond `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.ended = False
        self.body = b""
        self._limit = limit
        self._rest = b""
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> None:
        data = self._rest + data
        at, total = 0, len(data)
        while at < total:
            size_line = _SIZE.match(data, at)
            if size_line is None:
                _check_size_line(data, at)
                break
            start, size = size_line.end(), int(size_line[1], 16)
            end = start + size + 2
            if self._size + size > self._limit:
                raise Garbage(f"answered with more than {self._limit} bytes")
            if end > total:
                break
            if data[end - 2 : end] != b"\r\n":
                raise Garbage("sent a chunk that does not end where it should")
            at = end
            if size == 0:
                if end != total:
                    raise Garbage("sent bytes after the end of its answer")
                self.ended = True
                self.body = b"".join(self._parts)
                break
            self._parts.append(data[start : end - 2])
            self._size += size
        self._rest = data[at:]


def frame(payload: bytes) -> bytes:
    """One chunk."""
    return b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""


def unframe(chunks: bytes) -> bytes:
    """The payload of whole chunks."""
    return b"".join(_payloads(chunks))


def split_events(payload: bytes) -> list[bytes]:
    """Whole events, each with the empty line that ends it."""
    if b"\r\n\r\n" in payload:
        payload = payload.replace(b"\r\n", b"\n")
    return [event + b"\n\n" for event in payload.split(b"\n\n") if event]


def _payloads(chunks: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(chunks):
        size_line = _SIZE.match(chunks, at)
        assert size_line is not None, "these were read as whole chunks"
        start = size_line.end()
        at = start + int(size_line[1], 16) + 2
        yield chunks[start : at - 2]


def _check_size_line(data: bytes, at: int) -> None:
    """Raises Garbage for what can never become the line before a chunk."""
    line = data[at : at + _LONGEST_SIZE_LINE]
    if b"\n" in line or len(line) == _LONGEST_SIZE_LINE or (line and line[:1] not in b"0123456789abcdefABCDEF"):
        raise Garbage(f"sent {bytes(line[:40])!r} where a chunk should begin")
