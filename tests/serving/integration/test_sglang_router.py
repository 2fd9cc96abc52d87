"""SGLang's router in front of our prefill and decode workers, as it comes from its package."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from support.baton_processes import BatonProcess, BatonProcesses, free_port
from support.disaggregation import MODEL, Fleet, settled, until
from support.http import events, sdk

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("sglang_router") is None, reason="the package sglang-router is not installed"
)

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is 21 + 34?"}]


def start_router(processes: BatonProcesses, fleet: Fleet) -> str:
    """The router's URL, once it has found both workers."""
    prefill, decode = fleet.prefills[0], fleet.decodes[0]
    port, figures = str(free_port()), str(free_port())
    words = ["-m", "sglang_router.launch_router", "--pd-disaggregation", "--policy", "round_robin"]
    words += ["--prefill", prefill.url, prefill.key.rpartition(":")[2], "--decode", decode.url]
    words += ["--host", "127.0.0.1", "--port", port]
    words += ["--prometheus-host", "127.0.0.1", "--prometheus-port", figures]
    processes.run("router", sys.executable, *words)
    return f"http://127.0.0.1:{port}"


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readiness").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
async def router(processes: BatonProcesses, fleet: Fleet) -> str:
    url = start_router(processes, fleet)
    await until(lambda: answers(url), "the router to find its workers")
    return url


@pytest.fixture
def whole(fleet: Fleet) -> BatonProcess:
    assert fleet.whole is not None
    return fleet.whole


def served(fleet: Fleet) -> float:
    return fleet.decodes[0].metrics()["baton_handoffs_arrived_total"]


async def test_chat_streamed_and_not(router: str, fleet: Fleet, whole: BatonProcess) -> None:
    before = served(fleet)
    direct = await sdk(whole.url).chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=20)
    wanted = direct.choices[0].message.content
    assert wanted
    client = sdk(router)
    plain = await client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=20)
    assert plain.choices[0].message.content == wanted
    assert plain.choices[0].finish_reason == direct.choices[0].finish_reason
    stream = await client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=20, stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert "".join(pieces) == wanted
    assert len([piece for piece in pieces if piece]) > 1
    await settled(*fleet.workers)
    assert served(fleet) - before == 2


async def test_two_choices_and_completions(router: str, fleet: Fleet, whole: BatonProcess) -> None:
    async def texts(url: str, **more: Any) -> list[str]:
        answer = await sdk(url).completions.create(
            model=MODEL, prompt="the code for amber is", max_tokens=12, temperature=0.8, seed=11, **more
        )
        return [choice.text for choice in answer.choices]

    for more in ({}, {"n": 2}):
        assert await texts(router, **more) == await texts(whole.url, **more)

    async def chats(url: str) -> list[str | None]:
        answer = await sdk(url).chat.completions.create(model=MODEL, messages=QUESTION, n=2, seed=3, max_tokens=12)
        return [choice.message.content for choice in answer.choices]

    assert await chats(router) == await chats(whole.url)
    await settled(*fleet.workers)


async def test_generate_streamed_and_not(router: str, fleet: Fleet, whole: BatonProcess) -> None:
    body = {"text": "the code for amber is", "sampling_params": {"temperature": 0, "max_new_tokens": 10}}
    async with httpx.AsyncClient(timeout=60) as client:
        wanted = (await client.post(f"{whole.url}/generate", json=body)).json()
        plain = (await client.post(f"{router}/generate", json=body)).json()
    assert (plain["text"], plain["output_ids"]) == (wanted["text"], wanted["output_ids"])
    found = await events(f"{router}/generate", {**body, "stream": True})
    assert found[-1].data == "[DONE]"
    assert found[-2].data["text"] == wanted["text"]
    await settled(*fleet.workers)


async def test_errors_reach_the_client(router: str, fleet: Fleet) -> None:
    with pytest.raises(openai.BadRequestError, match="max"):
        await sdk(router).chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=10**6)
    await settled(*fleet.workers)
