"""Chat completions through the real openai SDK."""

from __future__ import annotations

import openai
from support.api_world import api_world, says


def client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


async def test_a_whole_answer() -> None:
    async with api_world(says("hello world 😀", cached=4)) as world, client(world.url) as sdk:
        answer = await sdk.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "how are you?"}], temperature=0
        )
        assert answer.choices[0].message.content == "hello world 😀"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.system_fingerprint == "d1ge57"
        message = world.scheduler.received[0]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(message.input_ids)
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == 4


async def test_a_stream_says_the_same() -> None:
    async with api_world(says("hello world 😀")) as world, client(world.url) as sdk:
        stream = await sdk.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "how are you?"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == "hello world 😀"
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
        assert chunks[-1].usage is not None
