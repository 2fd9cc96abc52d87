"""One request through the gateway, against workers that do right and wrong on real sockets."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest
from support.gateway_bench import (
    Bench,
    Call,
    answer,
    die,
    events,
    eventually,
    gateway_bench,
    hang,
    prefill_ok,
    stream,
)

from baton_bootstrap.records import State
from baton_serving.gateway.routing import RoutingConfig


async def read(response: aiohttp.ClientResponse) -> bytes:
    return await response.read()


async def test_both_legs_get_the_same_body_and_decode_is_streamed_through(bench: Bench) -> None:
    prefill = await bench.worker("p", prefill_ok)
    decode = await bench.worker("d", stream("a", "b"))
    headers = {"Authorization": "Bearer k", "X-Request-Id": "id-1", "traceparent": "00-1", "X-Other": "no"}
    body = {"model": "m", "prompt": "hi", "stream": True, "unknown_field": [1], "bootstrap_host": "evil", "n": 2}
    async with bench.session.post(f"{bench.url}/v1/completions", json=body, headers=headers) as response:
        assert response.status == 200
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["x-request-id"] == "id-1"
        assert response.headers["x-baton-route"] == "p>d"
        assert await read(response) == b"".join(events("a", "b"))
    [first], [second] = prefill.calls, decode.calls
    assert first.body == second.body
    handoff = first.body.pop("baton_handoff")
    assert isinstance(handoff, dict)
    assert (handoff["peer"], handoff["receiver"]) == ("p", "d")
    assert (handoff["attempt"], len(handoff["transfer_id"])) == (0, 32)
    assert len(str(first.body.pop("rid"))) == 32
    assert isinstance(first.body.pop("seed"), int)
    body |= {"bootstrap_host": None, "bootstrap_port": None, "bootstrap_room": None, "baton_resume": None}
    assert first.body == body
    for call in (first, second):
        assert "authorization" not in call.headers
        assert call.headers["x-request-id"] == "id-1"
        assert call.headers["traceparent"] == "00-1"
        assert "x-other" not in call.headers


async def test_a_plain_reply_goes_through_with_its_length(bench: Bench) -> None:
    await bench.worker("p", prefill_ok)
    await bench.worker("d", answer(text="hello"))
    async with bench.post() as response:
        assert (response.status, await response.json()) == (200, {"text": "hello"})
        assert "content-length" in response.headers


async def test_every_request_and_attempt_has_a_transfer_id_of_its_own(bench: Bench) -> None:
    prefill = await bench.worker("p", prefill_ok)
    await bench.worker("d", stream("a"))
    for _ in range(3):
        async with bench.post() as response:
            await read(response)
    ids = [str(call.body["baton_handoff"]) for call in prefill.calls]
    assert len(set(ids)) == 3


async def test_connections_to_workers_are_kept(bench: Bench) -> None:
    prefill = await bench.worker("p", prefill_ok)
    decode = await bench.worker("d", stream("a"))
    for _ in range(5):
        async with bench.post() as response:
            await read(response)
    assert (prefill.connections, decode.connections) == (1, 1)


async def test_a_worker_that_serves_whole_gets_no_handoff(bench: Bench) -> None:
    whole = await bench.worker("b", answer(text="x"))
    async with bench.post() as response:
        assert response.status == 200
        assert response.headers["x-baton-route"] == "b"
    assert "baton_handoff" not in whole.calls[0].body


@pytest.mark.parametrize("broken", ["p1", "d1"])
async def test_a_leg_lost_before_the_first_byte_is_retried_on_another_pair(bench: Bench, broken: str) -> None:
    held: list[Call] = []

    async def hold(call: Call) -> None:
        held.append(call)
        await call.hang()

    await bench.worker("p1", die if broken == "p1" else hold)
    await bench.worker("p2", prefill_ok)
    await bench.worker("d1", die if broken == "d1" else hold)
    await bench.worker("d2", stream("a"))
    async with bench.post() as response:
        assert await read(response) == b"".join(events("a"))
        assert response.headers["x-baton-attempts"] == "2"
        assert response.headers["x-baton-route"] == "p2>d2"
    [other] = held
    await other.closed.wait()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_a_status_that_another_worker_may_not_give_is_retried(bench: Bench, status: int) -> None:
    await bench.worker("p", prefill_ok)
    await bench.worker("d1", answer(status, error={}))
    await bench.worker("d2", stream("a"))
    async with bench.post() as response:
        assert response.status == 200
        assert response.headers["x-baton-attempts"] == "2"
        await read(response)


@pytest.mark.parametrize("refuser", ["p", "d"])
async def test_a_refusal_is_passed_on_and_ends_the_other_leg(bench: Bench, refuser: str) -> None:
    ended = asyncio.Event()

    async def hold(call: Call) -> None:
        await call.hang()
        ended.set()

    refuse = answer(400, error={"message": "no", "param": "n"})
    await bench.worker("p", refuse if refuser == "p" else hold)
    await bench.worker("d", refuse if refuser == "d" else hold)
    async with bench.post() as response:
        assert (response.status, await response.json()) == (400, {"error": {"message": "no", "param": "n"}})
    await ended.wait()


async def test_a_full_worker_without_an_alternative_is_reported_at_once(bench: Bench) -> None:
    async def full(call: Call) -> None:
        call.writer.write(b"HTTP/1.1 429 X\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nfull")
        await call.writer.drain()

    whole = await bench.worker("b", full)
    async with bench.post() as response:
        assert (response.status, await response.text()) == (429, "full")
        assert response.headers["retry-after"] == "7"
    assert len(whole.calls) == 1


async def test_a_worker_that_erred_gets_a_second_chance_when_it_is_the_only_one(bench: Bench) -> None:
    whole = await bench.worker("b", answer(503, error={}))

    async def recover(call: Call) -> None:
        whole.script = answer(text="x")
        await call.reply(503, error={})

    whole.script = recover
    async with bench.post() as response:
        assert response.status == 200
        assert response.headers["x-baton-attempts"] == "2"


async def test_attempts_are_bounded_and_the_last_error_is_told(bench: Bench) -> None:
    workers = [await bench.worker(f"b{number}", die) for number in range(5)]
    async with bench.post() as response:
        assert response.status == 503
        assert response.headers["retry-after"] == "1"
        error = (await response.json())["error"]
        assert "was lost" in error["message"]
        assert error["code"] == "unavailable"
    assert sum(len(worker.calls) for worker in workers) == 3


async def test_a_worker_that_comes_in_time_gets_the_waiting_request(bench: Bench) -> None:
    asking = asyncio.ensure_future(bench.session.post(f"{bench.url}/generate", json={"text": "x"}))
    await asyncio.sleep(0)
    await bench.worker("b", answer(text="x"))
    assert (await asking).status == 200


async def test_without_any_worker_the_request_fails_after_its_wait(bench: Bench) -> None:
    async with bench.post() as response:
        assert response.status == 503
        assert "no worker was ready within 0.3 s" in await response.text()


async def test_decode_lost_in_mid_stream_ends_in_an_error_event(bench: Bench) -> None:
    async def break_off(call: Call) -> None:
        await call.head()
        await call.chunk(events("a")[0])
        await call.chunk(b'data: {"text": "ha')
        call.die()

    await bench.worker("p", prefill_ok)
    await bench.worker("d", break_off)
    async with bench.post(stream=True) as response:
        text = await read(response)
    first, second, rest = text.split(b"\n\n")
    assert first + b"\n\n" == events("a")[0]
    assert json.loads(second.removeprefix(b"data: "))["error"]["code"] == "unavailable"
    assert rest == b""


async def test_a_plain_reply_cut_off_in_the_middle_is_retried(bench: Bench) -> None:
    async def cut(call: Call) -> None:
        call.writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 100\r\n\r\nhalf")
        await call.writer.drain()
        call.die()

    await bench.worker("b1", cut)
    await bench.worker("b2", answer(text="whole"))
    for _ in range(2):
        async with bench.post() as response:
            assert await response.json() == {"text": "whole"}


@pytest.mark.parametrize(
    "garbage",
    [
        b"SMTP ready\r\n\r\n",
        b"HTTP/1.1 200 X\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 302 X\r\nLocation: http://evil\r\nContent-Length: 0\r\n\r\n",
        b'HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\n\r\ndata: {"error": {"message": "x"}}\n\n',
    ],
)
async def test_a_worker_that_answers_garbage_counts_as_lost(bench: Bench, garbage: bytes) -> None:
    async def babble(call: Call) -> None:
        call.writer.write(garbage)
        await call.writer.drain()
        await call.hang()

    await bench.worker("b1", babble)
    await bench.worker("b2", stream("a"))
    for _ in range(2):
        async with bench.post() as response:
            assert await read(response) == b"".join(events("a"))


async def test_prefill_failing_after_decodes_first_bytes_does_not_matter(bench: Bench) -> None:
    streaming = asyncio.Event()

    async def late_death(call: Call) -> None:
        await streaming.wait()
        call.die()

    async def slow(call: Call) -> None:
        await call.head()
        first, *others = events("a", "b")
        await call.chunk(first)
        streaming.set()
        await prefill.calls[0].closed.wait()
        for event in others:
            await call.chunk(event)
        await call.end()

    prefill = await bench.worker("p", late_death)
    await bench.worker("d", slow)
    prefill_gone = asyncio.Event()

    async def die_and_tell(call: Call) -> None:
        await streaming.wait()
        call.die()
        call.closed.set()
        prefill_gone.set()

    prefill.script = die_and_tell
    async with bench.post() as response:
        assert await read(response) == b"".join(events("a", "b"))
    assert prefill_gone.is_set()


async def test_a_client_that_leaves_ends_both_legs(bench: Bench) -> None:
    ended = [asyncio.Event(), asyncio.Event()]
    begun = asyncio.Event()

    async def hold_prefill(call: Call) -> None:
        await call.hang()
        ended[0].set()

    async def hold_decode(call: Call) -> None:
        await call.head()
        await call.chunk(events("a")[0])
        begun.set()
        await call.hang()
        ended[1].set()

    await bench.worker("p", hold_prefill)
    await bench.worker("d", hold_decode)
    async with bench.post() as response:
        await response.content.readany()
        response.close()
    for event in ended:
        await event.wait()


async def test_a_client_that_leaves_before_any_byte_ends_both_legs(bench: Bench) -> None:
    workers = [await bench.worker("p", hang), await bench.worker("d", hang)]
    asking = asyncio.ensure_future(bench.session.post(f"{bench.url}/generate", json={"text": "x"}))
    calls = [await worker.called() for worker in workers]
    asking.cancel()
    for call in calls:
        await call.closed.wait()


async def test_a_worker_gone_from_the_view_for_good_is_retried_elsewhere(bench: Bench) -> None:
    lost = await bench.worker("b1", hang)
    asking = asyncio.ensure_future(bench.session.post(f"{bench.url}/generate", json={"text": "x"}))
    held = await lost.called()
    other = await bench.worker("b2", answer(text="x"))
    bench.show(other)
    response = await asking
    assert (response.status, response.headers["x-baton-route"]) == (200, "b2")
    await held.closed.wait()


async def test_a_stalled_worker_keeps_its_streams_and_loses_those_that_wait(bench: Bench) -> None:
    go_on = asyncio.Event()

    async def pause(call: Call) -> None:
        if call.body["stream"] == "held":
            await call.hang()
            return
        await call.head()
        first, *others = events("a", "b")
        await call.chunk(first)
        await go_on.wait()
        for event in others:
            await call.chunk(event)
        await call.end()

    stalled = await bench.worker("b1", pause)
    async with bench.post(stream="streaming") as streaming:
        assert await streaming.content.readany() == events("a")[0]
        held = asyncio.ensure_future(bench.session.post(f"{bench.url}/generate", json={"stream": "held"}))
        await stalled.called(times=2)
        stalled.state = State.STALLED
        await bench.worker("b2", answer(text="x"))
        assert (await held).headers["x-baton-route"] == "b2"
        go_on.set()
        assert await read(streaming) == b"".join(events("b"))


async def test_an_idle_connection_that_the_worker_closed_is_not_held_against_it(bench: Bench) -> None:
    whole = await bench.worker("b", answer(text="x"))

    async def close_on_next_request(call: Call) -> None:
        await call.reply(text="x")
        whole.script = closing

    async def closing(call: Call) -> None:
        whole.script = answer(text="x")
        call.die()

    whole.script = close_on_next_request
    for attempts in ("1", "2"):
        async with bench.post() as response:
            assert response.status == 200
            assert response.headers["x-baton-attempts"] == attempts


async def test_a_slow_client_does_not_fill_the_memory(bench: Bench) -> None:
    sent = 0
    stuck = asyncio.Event()
    event = b"data: " + b"x" * 60_000 + b"\n\n"

    async def flood(call: Call) -> None:
        nonlocal sent
        await call.head()
        while sent < 2000 and not call.closed.is_set():
            async with asyncio.timeout(0.5):
                await call.chunk(event)
            sent += 1

    async def flood_until_stuck(call: Call) -> None:
        with pytest.raises(TimeoutError):
            await flood(call)
        stuck.set()
        call.die()

    await bench.worker("b", flood_until_stuck)
    async with bench.session.post(f"{bench.url}/generate", json={}, read_bufsize=1) as response:
        await response.content.read(10)
        await stuck.wait()
        response.close()
    assert sent < 2000


async def test_large_events_arrive_whole_however_they_are_cut(bench: Bench) -> None:
    data = b"".join(b"data: " + bytes([97 + n % 26]) * (n * 997 % 70_000) + b"\n\n" for n in range(60))
    data += b"data: [DONE]\n\n"

    async def choppy(call: Call) -> None:
        await call.head()
        for start in range(0, len(data), 8_191):
            await call.chunk(data[start : start + 8_191])
        await call.end()

    await bench.worker("p", prefill_ok)
    await bench.worker("d", choppy)
    async with bench.post() as response:
        assert await read(response) == data


@pytest.mark.parametrize("shown", [0, 1])
async def test_a_stream_that_said_its_length_ends_there_though_the_connection_stays_open(
    bench: Bench, shown: int
) -> None:
    """Not when the client or a guard loses patience. With no event at all it is cut off, and that is said at once."""
    body = b"".join(events("a")) if shown else b""

    async def decode(call: Call) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n"
        call.writer.write(head % len(body) + body)
        await call.closed.wait()

    await bench.worker("b", decode)
    async with asyncio.timeout(10), bench.post() as response:
        assert (response.status, await read(response)) == (200, body) if shown else response.status >= 500


@pytest.mark.parametrize("streams", [True, False])
async def test_explain_tells_what_a_worker_says_of_its_stages_and_of_the_pages_it_got(
    bench: Bench, streams: bool
) -> None:
    async def decode(call: Call) -> None:
        kind, body = (b"text/event-stream", b"".join(events("a"))) if streams else (b"application/json", b"{}")
        told = b"x-baton-stages: queue=0.25; prefill=1; decode=nan; odd=1; transport=nixl tcp; pages=3; bytes=99\r\n"
        head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n%bcontent-length: %d\r\n\r\n"
        call.writer.write(head % (kind, told, len(body)) + body)

    await bench.worker("p", prefill_ok)
    await bench.worker("d", decode)
    async with bench.post(stream=streams) as response:
        await read(response)
        assert "x-baton-stages" not in response.headers
        request_id = response.headers["x-request-id"]
    async with bench.session.get(f"{bench.url}/v1/baton/explain/{request_id}") as response:
        [attempt] = (await response.json())["attempts"]
    assert attempt["transfer"] == {"transport": "nixl tcp", "pages": 3, "bytes": 99}
    assert attempt["stages"] == {"queue": 0.25, "prefill": 1.0}


async def test_a_request_that_lost_its_worker_waits_longer_than_a_new_one_for_another() -> None:
    async with gateway_bench(RoutingConfig(worker_wait=0)) as bench:

        async def leave(call: Call) -> None:
            bench.show()
            call.die()

        await bench.worker("b1", leave)

        async def ask() -> int:
            async with bench.post() as response:
                return response.status

        asked = asyncio.ensure_future(ask())
        await eventually(lambda: bool(bench.core.waiting))
        assert await ask() == 503  # nobody is there, and it had nobody to lose
        await bench.worker("b2", answer(text="x"))
        assert await asked == 200
