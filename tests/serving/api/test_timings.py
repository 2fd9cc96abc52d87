"""`baton_timings`: each finished choice says when it passed its stages, on request only."""

from __future__ import annotations

from typing import Any

import pytest
from support.api_world import api_world, says
from support.http import HELLO, events, post

ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO, "n": 2},
    "/v1/completions": {"prompt": "hi", "n": 2},
    "/generate": {"text": "hi", "sampling_params": {"n": 2}},
}


def extensions(answer: Any) -> list[Any]:
    """What stands under `baton` for each finished answer."""
    if isinstance(answer, list):
        return [item["meta_info"].get("baton") for item in answer]
    if "meta_info" in answer:
        return [answer["meta_info"].get("baton")] if answer["meta_info"]["finish_reason"] else []
    return [choice.get("baton") for choice in answer["choices"] if choice["finish_reason"]]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("asked", [True, False])
async def test_whole_and_streamed_answers_carry_them_when_asked(route: str, asked: bool) -> None:
    async with api_world(says("hello")) as world:
        body = {**ROUTES[route], "baton_timings": asked}
        response = await post(world.url + route, body)
        assert response.headers["x-baton-stages"] == "queue=0.250000; transport=mooncake tcp; pages=4; bytes=128"
        whole = extensions(response.json())
        streamed = [
            extension
            for event in await events(world.url + route, {**body, "stream": True})
            if event.data != "[DONE]"
            for extension in extensions(event.data)
        ]
    for found in (whole, streamed):
        assert len(found) == 2
        for extension in found:
            assert (extension is not None) == asked
            if asked:
                assert extension["timings"]["transfer_bytes"] == 64
                assert extension["timings"]["received"] > 0
