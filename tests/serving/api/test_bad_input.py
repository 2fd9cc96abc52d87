"""What a client can get wrong: an OpenAI-shaped 4xx that names the field, and the worker goes on serving."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from support.api_world import OPTIONS, World, api_world, says
from support.bad_input import BODIES, CASES, CHAT, NATIVE, TEXT
from support.http import HELLO, post


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with api_world(says("ok"), type(OPTIONS)(**{**vars(OPTIONS), "max_body_bytes": 30_000})) as made:
        yield made


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("path", [CHAT, TEXT, NATIVE, "/tokenize", "/abort_request"])
@pytest.mark.parametrize("body", BODIES)
async def test_a_body_that_is_no_json_object(world: World, path: str, body: bytes) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.post(world.url + path, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(("path", "body", "param"), CASES)
async def test_a_wrong_field_is_named(world: World, path: str, body: dict[str, Any], param: str) -> None:
    before = len(world.scheduler.received)
    answer = await post(world.url + path, body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["type"], error["code"]) == (param, "invalid_request_error", "invalid_request_error")
    assert len(error["message"]) < 300
    assert len(world.scheduler.received) == before
    assert world.manager.open_requests == 0


async def test_a_body_over_the_limit_is_refused_unread(world: World) -> None:
    answer = await post(world.url + TEXT, {"prompt": "a" * 30_000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


async def test_a_body_without_a_length_is_bounded_too(world: World) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(100):
            yield b"a" * 1000

    async with httpx.AsyncClient() as client:
        answer = await client.post(world.url + TEXT, content=endless())
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", CHAT, 405), ("DELETE", "/generate", 405), ("GET", "/v1/models/other", 404)],
)
async def test_no_such_route_or_model(world: World, method: str, path: str, status: int) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.request(method, world.url + path)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] in ("invalid_request_error", "not_found_error")


async def test_an_unknown_model(world: World) -> None:
    for path, body in ((CHAT, {"messages": HELLO}), (TEXT, {"prompt": "a"})):
        answer = await post(world.url + path, {**body, "model": "gpt-17"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("value", ["soon", "-1", "0", "nan", "inf"])
async def test_a_timeout_that_is_none(world: World, value: str) -> None:
    answer = await post(world.url + NATIVE, {"text": "a"}, headers={"x-request-timeout": value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-request-timeout")


async def test_unknown_fields_are_ignored(world: World) -> None:
    body = {"messages": HELLO, "user": "x", "store": True, "metadata": {"a": 1}, "service_tier": "auto", "foo": [1]}
    assert (await post(world.url + CHAT, body)).status_code == 200


@pytest.mark.parametrize(
    "bytes_sent",
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n"],
    ids=["HTTP/2 prior knowledge", "TLS", "noise"],
)
async def test_other_protocols_are_closed(world: World, bytes_sent: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(bytes_sent)
    await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert (await post(world.url + NATIVE, {"text": "a"})).status_code == 200


async def test_a_body_that_never_ends_is_given_up_when_its_client_leaves(world: World) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await post(world.url + NATIVE, {"text": "a"})).status_code == 200


async def test_the_worker_still_serves(world: World) -> None:
    answer = await post(world.url + CHAT, json.loads(json.dumps({"messages": HELLO})))
    assert answer.json()["choices"][0]["message"]["content"] == "ok"
    assert world.manager.open_requests == 0
