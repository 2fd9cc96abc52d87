"""Clients' connections: what is refused before anything is routed, and what a slow or idle client may cost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from support.gateway_bench import BODY_LIMIT, Bench, Call, answer, die, events, eventually, prefill_ok, stream

from baton_serving.gateway.http.downstream import WRITE_WINDOW

HEAD = b"POST /generate HTTP/1.1\r\nhost: x\r\n"


async def talk(bench: Bench, data: bytes) -> bytes:
    """Send bytes, and read until the gateway closes or has said a whole head and nothing more comes."""
    host, port = bench.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    heard = b""
    try:
        while chunk := await asyncio.wait_for(reader.read(65536), 0.3):
            heard += chunk
    except TimeoutError:
        pass
    writer.close()
    return heard


@pytest.mark.parametrize(
    "request_",
    [
        HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}",
        HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        HEAD + b"content-length: +2\r\n\r\n{}",
        HEAD + b"content-length: 2, 2\r\n\r\n{}",
        HEAD + b"content-length : 2\r\n\r\n{}",
        HEAD + b"x: a\r\n b\r\ncontent-length: 2\r\n\r\n{}",
        HEAD + b"x: a\ncontent-length: 2\r\n\r\n{}",
        HEAD + b"x: a\rb\r\ncontent-length: 2\r\n\r\n{}",
        HEAD + b"x: a\0b\r\ncontent-length: 2\r\n\r\n{}",
        HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}X0\r\n\r\n",
        HEAD + b"host: y\r\ncontent-length: 2\r\n\r\n{}",
        b"POST /generate HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}",
        b"POST /generate HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"POST /generate HTTP/1.1\nhost: x\ncontent-length: 2\n\n{}",
        b"GET /health\r\n\r\n",
        b"POST /generate HTTP/9.9\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
    ],
)
async def test_ambiguous_requests_are_refused_and_the_connection_is_closed(bench: Bench, request_: bytes) -> None:
    await bench.worker("b", answer(text="x"))
    follower = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
    heard = await talk(bench, request_ + follower)
    assert heard.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert heard.count(b"\r\n\r\n") == 1
    assert b"connection: close" in heard
    assert not bench.workers[0].calls


async def test_a_body_is_refused_by_its_announced_size(bench: Bench) -> None:
    heard = await talk(bench, HEAD + b"content-length: %d\r\n\r\n" % (BODY_LIMIT + 1))
    assert heard.startswith(b"HTTP/1.1 413 ")


async def test_headers_without_end_are_refused(bench: Bench) -> None:
    heard = await talk(bench, HEAD + b"x: " + b"a" * 200_000)
    assert heard.startswith(b"HTTP/1.1 413 ")


async def test_chunked_bodies_and_their_trailers(bench: Bench) -> None:
    await bench.worker("b", answer(text="x"))
    sent = HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\ntraceparent: 00-1\r\n\r\n"
    assert (await talk(bench, sent)).startswith(b"HTTP/1.1 200 OK")
    [call] = bench.workers[0].calls
    assert "traceparent" not in call.headers


async def test_requests_one_behind_the_other_are_answered_in_order(bench: Bench) -> None:
    await bench.worker("b", stream("a"))
    one = HEAD + b"content-length: 2\r\n\r\n{}"
    heard = await talk(bench, one * 30 + b"GET /liveness HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert heard.count(b"HTTP/1.1 200 OK") == 31
    assert heard.endswith(b'{"status":"ok"}')


async def test_a_client_that_asks_before_it_sends_its_body_is_told_to_go_on(bench: Bench) -> None:
    heard = await talk(bench, HEAD + b"content-length: 2\r\nexpect: 100-continue\r\n\r\n")
    assert heard == b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_an_old_client_gets_a_stream_without_chunks(bench: Bench) -> None:
    await bench.worker("b", stream("a"))
    heard = await talk(bench, b"POST /generate HTTP/1.0\r\ncontent-length: 2\r\n\r\n{}")
    head, _, body = heard.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"chunked" not in head
    assert body == b'data: {"text": "a"}\n\ndata: [DONE]\n\n'


async def test_a_worker_that_answers_for_another_is_not_believed(bench: Bench) -> None:
    async def impostor(call: object) -> None:
        head = b"HTTP/1.1 200 X\r\nx-baton-incarnation: somebody\r\ncontent-length: 2\r\n\r\n{}"
        call.writer.write(head)  # type: ignore[attr-defined]

    await bench.worker("b1", impostor)
    await bench.worker("b2", answer(text="x"))
    for _ in range(2):
        async with bench.post() as response:
            assert response.headers["x-baton-route"] == "b2"


async def test_a_worker_that_has_said_who_it_is_must_go_on_saying_so(bench: Bench) -> None:
    """Somebody else may have got its port."""
    named = True

    async def forgetful(call: Call) -> None:
        name = b"x-baton-incarnation: %b\r\n" % worker.entry.worker.incarnation.encode() if named else b""
        call.writer.write(b"HTTP/1.1 200 X\r\n%bcontent-length: 2\r\n\r\n{}" % name)

    worker = await bench.worker("b1", forgetful)
    async with bench.post() as response:
        assert response.headers["x-baton-route"] == "b1"
    named = False
    await bench.worker("b2", answer(text="x"))
    for _ in range(2):
        async with bench.post() as response:
            assert response.headers["x-baton-route"] == "b2"


async def test_many_idle_connections_cost_nobody_anything(bench: Bench) -> None:
    await bench.worker("b", answer(text="x"))
    host, port = bench.url.removeprefix("http://").split(":")
    idle = [await asyncio.open_connection(host, int(port)) for _ in range(300)]
    async with bench.post() as response:
        assert response.status == 200
    for _, writer in idle:
        writer.close()


async def test_a_client_that_reads_nothing_holds_its_worker_back(bench: Bench) -> None:
    """What waits for it in the gateway is bounded, and nothing of it is lost once it reads."""
    piece = events("x" * 60_000)[0]
    pieces = 400  # 24 MB: more than the kernel's buffers of both connections take

    async def flood(call: Call) -> None:
        await call.head()
        for _ in range(pieces):
            await call.chunk(piece)
        await call.chunk(b"data: [DONE]\n\n")
        await call.end()

    await bench.worker("b", flood)
    host, port = bench.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(HEAD + b'connection: close\r\ncontent-length: 15\r\n\r\n{"stream":true}')
    await eventually(lambda: any(connection.lagging for connection in bench.connections))
    [exchange], [connection] = bench.core.open, bench.connections
    waiting = connection.waiting_bytes
    assert 0 < waiting <= WRITE_WINDOW + 256 * 1024 + len(piece)  # one read, and an event that was half there
    assert exchange.record.bytes_out < pieces * len(piece)
    assert (await reader.read()).count(b"data: {") == pieces
    writer.close()


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_a_large_body_reaches_both_legs_whole(bench: Bench, chunked: bool) -> None:
    """It is held once and sent in pieces; another attempt finds it as it came."""
    await bench.worker("p", prefill_ok)
    await bench.worker("d1", die)
    await bench.worker("d2", answer(text="x"))
    prompt = "".join(f"{number:07d}\n" for number in range(110_000))
    data = json.dumps({"model": "m", "prompt": prompt, "later": [1, {}]}, indent=1).encode() + b" \n"
    assert 900_000 < len(data) < BODY_LIMIT

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 50_000):
            yield data[at : at + 50_000]

    for _ in range(2):  # one of the two meets the decode worker that dies
        async with bench.session.post(f"{bench.url}/v1/completions", data=pieces() if chunked else data) as response:
            assert response.status == 200
    calls = [call for worker in bench.workers for call in worker.calls]
    assert len(calls) >= 5
    for call in calls:
        assert (call.body["prompt"], call.body["later"]) == (prompt, [1, {}])
        assert call.body["baton_handoff"]
