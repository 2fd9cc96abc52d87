"""Bytes on a raw socket that try to get past the gateway's parser, or to tie it up."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from support.gateway_bench import Call, ScriptedWorker, answer
from support.gateway_over import BODY_LIMIT, gateway_before

from baton_bootstrap.records import Role

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = b'{"model": "m", "prompt": "a"}'
LINE = b"POST /v1/completions HTTP/1.1\r\n"
HOST = b"Host: x\r\n"
SECRET = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


class Target:
    def __init__(self, port: int, worker: ScriptedWorker) -> None:
        self.port = port
        self.worker = worker

    async def send(self, data: bytes, *, half_close: bool = False) -> bytes:
        """All that comes back until the gateway closes, or falls silent after an answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        if half_close:
            writer.write_eof()
        got = b""
        try:
            async with asyncio.timeout(0.6):
                while piece := await reader.read(65536):
                    got += piece
        except TimeoutError:
            pass
        writer.close()
        return got

    async def serves(self) -> bool:
        got = await self.send(LINE + HOST + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY))
        return got.startswith(b"HTTP/1.1 200")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target() -> AsyncIterator[Target]:
    worker = ScriptedWorker("b", Role.BOTH, answer(served=True))
    await worker.start()
    async with gateway_before(worker.entry.worker.http_url, model="m") as url:
        yield Target(int(url.rpartition(":")[2]), worker)
    await worker.stop()


def both(length: bytes, coding: bytes) -> bytes:
    return LINE + HOST + b"Content-Length: " + length + b"\r\nTransfer-Encoding: " + coding + b"\r\n\r\n"


SMUGGLED = {
    "length and chunked": both(b"4", b"chunked") + b"0\r\n\r\n" + SECRET,
    "two lengths": LINE + HOST + b"Content-Length: 29\r\nContent-Length: 2\r\n\r\n" + BODY + SECRET,
    "list of lengths": LINE + HOST + b"Content-Length: 29, 29\r\n\r\n" + BODY,
    "negative length": LINE + HOST + b"Content-Length: -1\r\n\r\n" + SECRET,
    "plus length": LINE + HOST + b"Content-Length: +29\r\n\r\n" + BODY,
    "hex length": LINE + HOST + b"Content-Length: 0x1d\r\n\r\n" + BODY,
    "huge length": LINE + HOST + b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY,
    "coding of another name": LINE + HOST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SECRET,
    "two codings": LINE + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + SECRET,
    "coding twice": LINE
    + HOST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"
    + SECRET,
    "coding with a tab": LINE + HOST + b"Transfer-Encoding:\tchunked, x\r\n\r\n0\r\n\r\n" + SECRET,
    "space before the colon": LINE + HOST + b"Content-Length : 29\r\n\r\n" + BODY,
    "folded header": LINE + HOST + b"X: a\r\n Content-Length: 2\r\n\r\n" + BODY,
    "bare CR in a value": LINE + HOST + b"X: a\rContent-Length: 29\r\n\r\n" + BODY,
    "NUL in a value": LINE + HOST + b"X: a\0b\r\nContent-Length: 29\r\n\r\n" + BODY,
    "no colon": LINE + HOST + b"Nonsense\r\n\r\n",
    "no host": LINE + b"Content-Length: 29\r\n\r\n" + BODY,
    "two hosts": LINE + HOST + b"Host: y\r\nContent-Length: 29\r\n\r\n" + BODY,
    "chunk size that is none": LINE + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + SECRET,
    "negative chunk": LINE + HOST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + SECRET,
    "chunk longer than it says": LINE + HOST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n" + SECRET,
    "HTTP/1.0 chunked": LINE.replace(b"1.1", b"1.0") + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SECRET,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /health\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32),
    "upgrade": LINE + HOST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n" + SECRET,
}


@pytest.mark.parametrize("name", list(SMUGGLED))
async def test_nothing_is_smuggled(target: Target, name: str) -> None:
    """One refusal, then the end: what follows is never read as a request of its own."""
    before = len(target.worker.calls)
    got = await target.send(SMUGGLED[name])
    assert len(target.worker.calls) == before, name
    assert len(re.findall(rb"^HTTP/1.1 \d+ ", got, re.MULTILINE)) + got.count(b"}HTTP/1.1 ") <= 1
    assert not got.startswith(b"HTTP/1.1 2")
    if got:
        assert b"connection: close" in got.lower()
    assert await target.serves()


@pytest.mark.parametrize(
    "name", ["baton_handoff", "baton_resume", "bootstrap_host", "bootstrap_port", "bootstrap_room"]
)
async def test_no_field_of_a_client_steers_the_handoff(target: Target, name: str) -> None:
    """Twice in one body, too: parsers differ in which of the two they take."""
    twice = b'{"%b": "http://169.254.169.254/", "model": "m", "%b": {"peer": "evil"}}' % (name.encode(), name.encode())
    got = await target.send(LINE + HOST + b"Content-Length: %d\r\n\r\n%b" % (len(twice), twice))
    assert got.startswith(b"HTTP/1.1 200")
    assert not target.worker.calls[-1].body.get(name)


async def test_headers_of_the_inside_stay_inside(target: Target) -> None:
    evil = b"X-Forwarded-For: 1.2.3.4\r\nConnection: x-request-id\r\nX-Baton-Incarnation: me\r\nCookie: a=b\r\n"
    got = await target.send(LINE + HOST + evil + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY))
    assert got.startswith(b"HTTP/1.1 200")
    sent = target.worker.calls[-1].headers
    assert not {"x-forwarded-for", "x-baton-incarnation", "cookie"} & sent.keys()
    assert sent["host"] != "x"


@pytest.mark.parametrize("value", [b"a\x01b", b"\xff\xfe", b"x" * 5000], ids=["control", "bytes", "long"])
async def test_a_request_id_cannot_break_out(target: Target, value: bytes) -> None:
    got = await target.send(
        LINE + HOST + b"X-Request-Id: %b\r\nContent-Length: %d\r\n\r\n%b" % (value, len(BODY), BODY)
    )
    assert got.count(b"\r\n\r\n") == 1
    assert await target.serves()


@pytest.mark.parametrize(
    ("make", "status"),
    [
        (lambda: LINE + HOST + b"X: " + b"a" * 100_000 + b"\r\n\r\n", b"413"),
        (lambda: LINE + HOST + b"".join(b"X%d: a\r\n" % n for n in range(20_000)), b"413"),
        (lambda: b"POST /" + b"a" * 100_000, b"413"),
        (lambda: LINE + HOST + b"Content-Length: %d\r\n\r\n" % (BODY_LIMIT + 1), b"413"),
        (
            lambda: (
                LINE + HOST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % (BODY_LIMIT + 1) + b"a" * BODY_LIMIT * 2
            ),
            b"413",
        ),
    ],
    ids=["long header", "many headers", "long path", "declared body", "chunked body"],
)
async def test_sizes_are_bounded(target: Target, make: Callable[[], bytes], status: bytes) -> None:
    got = await target.send(make())
    assert got.startswith(b"HTTP/1.1 " + status), got[:80]
    assert await target.serves()


async def test_half_requests_are_dropped_with_their_client(target: Target) -> None:
    before = len(target.worker.calls)
    for half in (LINE, LINE + HOST, LINE + HOST + b"Content-Length: 100\r\n\r\n{"):
        assert await target.send(half, half_close=True) == b""
    assert len(target.worker.calls) == before
    assert await target.serves()


async def test_pipelined_requests_are_answered_in_order_one_by_one(target: Target) -> None:
    one = LINE + HOST + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
    got = await target.send(one * 5)
    assert got.count(b"HTTP/1.1 200") == 5


async def test_a_workers_answer_cannot_add_headers(target: Target) -> None:
    async def evil(call: Call) -> None:
        body = json.dumps({"a": 1}).encode()
        head = b"HTTP/1.1 200 X\r\nContent-Type: a\rSet-Cookie: b\r\nContent-Length: %d\r\n\r\n" % len(body)
        call.writer.write(head + body)

    good, target.worker.script = target.worker.script, evil
    got = await target.send(LINE + HOST + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY))
    target.worker.script = good
    assert b"Set-Cookie" not in got.partition(b"\r\n\r\n")[0]
    assert not got.startswith(b"HTTP/1.1 200")
