"""Responses of every kind say which worker gave them."""

from __future__ import annotations

from dataclasses import replace

from support.api_world import OPTIONS, WEIGHTS, api_world, says
from support.http import HELLO, get, post

KEYED = type(OPTIONS)(**{**vars(OPTIONS), "api_key": "sesame"})


async def test_answers_and_refusals_are_signed() -> None:
    async with api_world(says("ok")) as world:
        chat, body = f"{world.url}/v1/chat/completions", {"messages": HELLO}
        assert "x-baton-incarnation" not in (await post(chat, body)).headers
        for name in ("first", "after other weights"):
            world.manager.weights = replace(WEIGHTS, incarnation=name)
            answers = [
                await post(chat, body),
                await post(chat, {**body, "stream": True}),
                await post(chat, {**body, "model": "another"}),
                await get(f"{world.url}/nowhere"),
            ]
            assert [answer.status_code for answer in answers] == [200, 200, 404, 404]
            assert [answer.headers["x-baton-incarnation"] for answer in answers] == [name] * 4


async def test_whoever_lacks_the_key_learns_whom_he_asked() -> None:
    async with api_world(says("ok"), KEYED) as world:
        world.manager.weights = replace(WEIGHTS, incarnation="first")
        answer = await get(f"{world.url}/v1/models")
        assert (answer.status_code, answer.headers["x-baton-incarnation"]) == (401, "first")
