"""What bodies of open requests may take up together, and that all of it is given back."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from support.gateway_bench import BODIES_LIMIT, BODY_LIMIT, Bench, answer, eventually, hang

from baton_serving.errors import TooLarge, Unavailable
from baton_serving.gateway.http.bodies import Bodies

LARGE = "x" * (BODY_LIMIT - 1000)
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\n"


def test_one_body_and_all_of_them() -> None:
    bodies = Bodies(limit=10, total=15)
    assert bodies.refusal(10) is None
    assert isinstance(bodies.refusal(11), TooLarge)
    bodies.held = 10
    assert bodies.refusal(5) is None
    full = bodies.refusal(6)
    assert isinstance(full, Unavailable)
    assert full.retry_after


async def test_what_would_go_beyond_is_refused_until_others_have_ended(bench: Bench) -> None:
    worker = await bench.worker("b", hang)
    async with AsyncExitStack() as open_requests:
        for number in range(4):
            waiting = asyncio.ensure_future(bench.session.post(bench.url + "/v1/completions", json=_large()))
            open_requests.callback(waiting.cancel)
            await worker.called(number + 1)
        async with bench.post(prompt=LARGE) as response:
            assert response.status == 503
            assert response.headers["retry-after"] == "1"
            assert (await response.json())["error"]["code"] == "unavailable"
        assert BODIES_LIMIT - 4000 - BODY_LIMIT < bench.bodies.held <= BODIES_LIMIT
        worker.script = answer(text="x")
        async with bench.post() as response:  # a small one fits
            assert response.status == 200
    await eventually(bench.idle)
    async with bench.post(prompt=LARGE) as response:
        assert response.status == 200


@pytest.mark.parametrize("ending", ["gone", "garbage", "too large"])
async def test_half_a_body_is_let_go_with_its_request(bench: Bench, ending: str) -> None:
    host, port = bench.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n8\r\n{}      \r\n")
    await eventually(lambda: bench.bodies.held == 8)
    if ending == "gone":
        writer.close()
    elif ending == "garbage":
        writer.write(b"what?\r\n")
        assert b" 400 " in await reader.readline()
    else:
        writer.write(b"%x\r\n%b" % (BODY_LIMIT, b" " * BODY_LIMIT))
        assert b" 413 " in await reader.readline()
    await eventually(lambda: not bench.bodies.held)
    writer.close()


async def test_requests_that_wait_their_turn_on_a_connection_count_too(bench: Bench) -> None:
    worker = await bench.worker("b", hang)
    host, port = bench.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(3 * (HEAD + b"content-length: 2\r\n\r\n{}"))
    await worker.called()
    await eventually(lambda: bench.bodies.held == 6)
    writer.close()
    await eventually(lambda: not bench.bodies.held)


def _large() -> dict[str, str]:
    return {"model": "m", "prompt": LARGE}
