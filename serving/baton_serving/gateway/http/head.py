"""Heads of workers' responses: what the gateway must know of them, and which lines go on to the client."""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from baton_serving.gateway.http.framing import Garbage

HEAD_LIMIT = 64 * 1024

_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n\0]*)?")
_NAME_BYTES = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KEPT_BACK = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-connection", b"te", b"trailer", b"upgrade"),
        *(b"transfer-encoding", b"content-length", b"server", b"date", b"x-request-id"),
        *(b"x-baton-incarnation", b"x-baton-stages"),
    }
)


class Head(msgspec.Struct, frozen=True, gc=False):
    """`length` is None when the body is chunked or ends with the connection. `relayed` are header lines for the client.

    `incarnation` is who answers and `stages` how long it took for each, as it says itself; "" when it does not.
    """

    status: int
    length: int | None
    chunked: bool
    keep_alive: bool
    event_stream: bool
    relayed: bytes
    incarnation: str
    stages: str


@lru_cache(maxsize=256)
def read_head(head: bytes) -> Head:
    """Parse all up to, and without, the empty line. Raises Garbage. Heads of streams repeat: they are kept."""
    first, *lines = head.split(b"\r\n")
    status_line = _STATUS.fullmatch(first)
    if status_line is None:
        raise Garbage(f"sent what is not HTTP: {first[:60]!r}")
    if b"\0" in head or head.count(b"\r") != len(lines) or head.count(b"\n") != len(lines):
        raise Garbage(f"sent header lines that do not end where they should: {head[:60]!r}")
    names: dict[bytes, bytes] = {}
    relayed: list[bytes] = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not name or not colon or name.translate(None, _NAME_BYTES):
            raise Garbage(f"sent a header line that is none: {line[:60]!r}")
        name, value = name.lower(), value.strip(b" \t")
        if name in names and name in (b"content-length", b"transfer-encoding"):
            raise Garbage(f"sent {name.decode()} twice")
        names[name] = value
        if name not in _KEPT_BACK:
            relayed.append(b"%b: %b\r\n" % (name, value))
    status = int(status_line[2])
    length = _length(names)
    chunked = _chunked(names)
    if chunked and length is not None:
        raise Garbage("sent both content-length and transfer-encoding")
    if status in (204, 304):
        length, chunked = 0, False
    connection = names.get(b"connection", b"").lower()
    delimited = chunked or length is not None
    return Head(
        status=status,
        length=length,
        chunked=chunked,
        keep_alive=delimited and (connection != b"close" if status_line[1] == b"1" else connection == b"keep-alive"),
        event_stream=names.get(b"content-type", b"").startswith(b"text/event-stream"),
        relayed=b"".join(relayed),
        incarnation=names.get(b"x-baton-incarnation", b"").decode("latin-1"),
        stages=names.get(b"x-baton-stages", b"").decode("latin-1"),
    )


def _length(names: dict[bytes, bytes]) -> int | None:
    value = names.get(b"content-length")
    if value is None:
        return None
    if not value.isdigit() or len(value) > 15:
        raise Garbage(f"sent a content-length of {value[:40]!r}")
    return int(value)


def _chunked(names: dict[bytes, bytes]) -> bool:
    value = names.get(b"transfer-encoding")
    if value is None:
        return False
    if value.lower() != b"chunked":
        raise Garbage(f"sent a transfer-encoding of {value[:40]!r}")
    return True
