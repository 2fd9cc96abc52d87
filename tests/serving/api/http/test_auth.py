"""The API key guards every route but the liveness probe."""

from __future__ import annotations

import openai
import pytest
from support.api_world import OPTIONS, api_world, says
from support.http import HELLO, get, post, sdk

from baton_serving.api.app import ROUTES

KEYED = type(OPTIONS)(**{**vars(OPTIONS), "api_key": "sesame ünï"})


async def test_every_route_but_health_needs_the_key() -> None:
    async with api_world(says("ok"), KEYED) as world:
        for method, path, _ in ROUTES:
            url = world.url + path.replace("{model:path}", "tiny")
            answer = await (get(url) if method == "GET" else post(url, {}))
            assert answer.status_code == (200 if path == "/health" else 401), path
        answer = await get(f"{world.url}/v1/models")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert world.scheduler.received == []


@pytest.mark.parametrize(
    "header", [b"Bearer", b"Bearer x", b"Bearer sesame", b"Basic sesame", b"\xff\xfe", b"Bearer \xff"]
)
async def test_other_keys_are_refused(header: bytes) -> None:
    async with api_world(says("ok"), KEYED) as world:
        answer = await get(f"{world.url}/v1/models", headers=[(b"authorization", header)])
        assert answer.status_code == 401


async def test_the_sdk_brings_the_key() -> None:
    keyed = type(OPTIONS)(**{**vars(OPTIONS), "api_key": "sesame"})
    async with api_world(says("ok"), keyed) as world:
        async with sdk(world.url, "sesame") as client:
            assert (await client.chat.completions.create(model="tiny", messages=HELLO)).choices[0].finish_reason
        async with sdk(world.url, "wrong") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
