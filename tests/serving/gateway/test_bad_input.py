"""What a worker refuses is refused through the gateway in the same words; the pair serves on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from support.api_world import World, api_world, says
from support.bad_input import BODIES, CASES, CHAT, NATIVE, TEXT
from support.gateway_over import BODY_LIMIT, gateway_before
from support.http import HELLO

Site = tuple[World, httpx.AsyncClient]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site() -> AsyncIterator[Site]:
    async with (
        api_world(says("ok")) as world,
        gateway_before(world.url, model="tiny") as url,
        httpx.AsyncClient(base_url=url, timeout=20) as client,
    ):
        yield world, client


@pytest.mark.parametrize("path", [CHAT, TEXT, NATIVE, "/tokenize", "/v1/responses", "/v1/embeddings"])
@pytest.mark.parametrize("body", BODIES)
async def test_a_body_that_is_no_json_object(site: Site, path: str, body: bytes) -> None:
    answer = await site[1].post(path, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(("path", "body", "param"), [one for one in CASES if "baton_resume" not in one.values[1]])
async def test_a_wrong_field_is_named(site: Site, path: str, body: dict[str, Any], param: str) -> None:
    world, client = site
    if "bootstrap_room" in body or "rid" in body:  # the gateway's own to choose, whatever a client sends
        assert (await client.post(path, json=body)).status_code == 200
        return
    answer = await client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert world.manager.open_requests == 0


async def test_bodies_methods_models_and_routes(site: Site) -> None:
    _, client = site
    assert (await client.post(TEXT, json={"prompt": "a" * (BODY_LIMIT + 1)})).status_code == 413
    assert (await client.get(CHAT)).status_code == 405
    assert (await client.get("/nowhere")).status_code == 404
    assert (await client.get("/v1/models/tiny")).json()["id"] == "tiny"
    assert (await client.get("/v1/models/other")).status_code == 404
    assert (await client.post(CHAT, json={"model": "gpt-17", "messages": HELLO})).status_code == 404
    assert (await client.post(CHAT, json={"model": 5, "messages": HELLO})).json()["error"]["param"] == "model"
    assert (await client.post(CHAT, json={"messages": HELLO, "whatever": {"deep": [1]}})).status_code == 200
