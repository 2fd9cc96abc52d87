"""What the gateway answers itself, and bad input."""

from __future__ import annotations

import asyncio

import pytest
from support.gateway_bench import BODY_LIMIT, Bench, answer, stream


async def test_models_are_the_union_over_workers(bench: Bench) -> None:
    await bench.worker("p", answer(), model="one")
    await bench.worker("d", answer(), model="one")
    await bench.worker("b", answer(), model="two")
    async with bench.session.get(f"{bench.url}/v1/models") as response:
        listing = await response.json()
    assert [model["id"] for model in listing["data"]] == ["one", "two"]


async def test_health_is_whether_some_worker_can_serve(bench: Bench) -> None:
    async with bench.session.get(f"{bench.url}/health") as response:
        assert response.status == 503
    await bench.worker("p", answer())
    async with bench.session.get(f"{bench.url}/health") as response:
        assert response.status == 503
    await bench.worker("d", answer())
    async with bench.session.get(f"{bench.url}/health") as response:
        assert (response.status, await response.json()) == (200, {"status": "ok", "models": ["m"]})
    async with bench.session.get(f"{bench.url}/liveness") as response:
        assert response.status == 200


async def test_metrics_count_requests_by_outcome(bench: Bench) -> None:
    await bench.worker("b1", answer(400, error={}))
    async with bench.post() as response:
        assert response.status == 400
    bench.workers[0].script = stream("a")
    async with bench.post() as response:
        await response.read()
    async with bench.session.get(f"{bench.url}/metrics") as response:
        text = await response.text()
    assert 'baton_gateway_requests_total{outcome="done",path="/v1/completions"} 1.0' in text
    assert 'baton_gateway_requests_total{outcome="refused",path="/v1/completions"} 1.0' in text
    assert 'baton_gateway_workers{role="both",state="ready"} 1.0' in text
    assert 'baton_gateway_legs{worker="b1"} 0.0' in text


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (b"{", 400, "not valid JSON"),
        (b"\xff", 400, "not valid JSON"),
        (b"[1]", 400, "JSON object"),
        (b"", 400, "not valid JSON"),
        (b'{"model": 5}', 400, "model must be a string"),
        (b'{"model": "other"}', 404, "there is no model 'other'; there are m"),
    ],
)
async def test_bad_bodies_are_refused_with_a_reason(bench: Bench, body: bytes, status: int, named: str) -> None:
    await bench.worker("b", answer())
    async with bench.session.post(f"{bench.url}/v1/chat/completions", data=body) as response:
        error = (await response.json())["error"]
        assert (response.status, named in error["message"]) == (status, True), error
    assert not bench.workers[0].calls


async def test_a_model_must_be_named_among_several(bench: Bench) -> None:
    await bench.worker("b1", answer(), model="one")
    await bench.worker("b2", answer(), model="two")
    async with bench.session.post(f"{bench.url}/generate", json={}) as response:
        assert response.status == 400
        assert "name a model; there are one, two" in await response.text()


async def test_a_model_that_was_there_is_missing_not_unknown(bench: Bench) -> None:
    gone = await bench.worker("b1", answer(), model="one")
    other = await bench.worker("b2", answer(), model="two")
    bench.show(other)
    assert gone is not other
    async with bench.post(model="one") as response:
        assert response.status == 503


async def test_a_body_that_is_too_large_is_refused(bench: Bench) -> None:
    async with bench.session.post(f"{bench.url}/generate", data=b"x" * (BODY_LIMIT + 1)) as response:
        assert response.status == 413


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/completions", 405), ("GET", "/nowhere", 404)])
async def test_unknown_routes_and_methods(bench: Bench, method: str, path: str, status: int) -> None:
    async with bench.session.request(method, bench.url + path) as response:
        assert response.status == status
        assert (await response.json())["error"]["message"]


async def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing(bench: Bench) -> None:
    host, port = bench.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    await writer.drain()
    writer.transport.abort()
    async with bench.session.get(f"{bench.url}/liveness") as response:
        assert response.status == 200
