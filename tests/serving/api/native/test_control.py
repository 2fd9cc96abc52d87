"""Calls that act on a worker, and text to tokens and back."""

from __future__ import annotations

import asyncio

import pytest
from support.api_world import CONTEXT, api_world, intake, says
from support.http import events, get, post
from support.scripted_scheduler import Script
from support.tiny_tokenizer import tiny_tokenizer

from baton_serving.runtime.messages import Failure

IDS = tiny_tokenizer().encode("hello world")


@pytest.mark.parametrize("call", [get, lambda url: post(url, None)], ids=["GET", "POST"])
async def test_flush_cache(call: object) -> None:
    async with api_world(says("ok")) as world:
        answer = await call(f"{world.url}/flush_cache")  # type: ignore[operator]
        assert answer.json() == {"success": True, "pages": 7}


async def test_a_control_call_that_fails_keeps_its_error() -> None:
    async with api_world(says("ok")) as world:
        world.scheduler.controls["flush_cache"] = lambda args: Failure("unavailable", "not now")
        answer = await get(f"{world.url}/flush_cache")
        assert (answer.status_code, answer.json()["error"]["message"]) == (503, "not now")


async def test_abort_all() -> None:
    async with api_world(lambda message: Script([5], None)) as world:
        tasks = [asyncio.create_task(events(f"{world.url}/generate", {"text": "a", "stream": True})) for _ in range(3)]
        await world.scheduler.until(lambda: len(world.scheduler.received) == 3)
        assert (await post(f"{world.url}/abort_request", {"abort_all": True})).json() == {"aborted": True}
        for task in tasks:
            assert (await task)[-2].data["meta_info"]["finish_reason"]["type"] == "abort"
        assert (await post(f"{world.url}/abort_request", {})).status_code == 400


async def test_tokenize_and_back() -> None:
    async with api_world(says("ok")) as world:
        answer = (await post(f"{world.url}/tokenize", {"prompt": "hello world"})).json()
        assert answer == {"tokens": IDS, "count": len(IDS), "max_model_len": CONTEXT}
        answer = (await post(f"{world.url}/tokenize", {"prompt": ["hello world", "a"]})).json()
        assert answer["tokens"][0] == IDS
        assert (await post(f"{world.url}/detokenize", {"tokens": IDS})).json() == {"text": "hello world"}
        answer = await post(f"{world.url}/detokenize", {"tokens": [IDS, [0]], "skip_special_tokens": False})
        assert answer.json() == {"text": ["hello world", "<|end|>"]}
        for bad in ([10**9], [1, [2]], "x"):
            assert (await post(f"{world.url}/detokenize", {"tokens": bad})).status_code == 400


async def test_a_worker_without_tokenizer_takes_ids_only() -> None:
    async with api_world(says("ok"), reads=intake(tokenizer=None)) as world:
        answer = await post(f"{world.url}/generate", {"input_ids": [5]})
        assert answer.status_code == 200
        for path, body in (
            ("/generate", {"text": "a"}),
            ("/tokenize", {"prompt": "a"}),
            ("/detokenize", {"tokens": [1]}),
        ):
            answer = await post(world.url + path, body)
            assert (answer.status_code, "skip-tokenizer-init" in answer.text) == (400, True)
