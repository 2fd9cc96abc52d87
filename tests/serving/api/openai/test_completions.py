"""Text completions: every way to write a prompt, echo, log-probabilities, streams."""

from __future__ import annotations

from typing import Any

import pytest
from support.api_world import api_world, says
from support.http import events, post, sdk
from support.scripted_scheduler import Script
from support.tiny_tokenizer import tiny_tokenizer

from baton_serving.runtime.messages import Finish, GenerateInput

IDS = tiny_tokenizer().encode("one two")


def echo(message: GenerateInput) -> Script:
    """Answers with the prompt itself."""
    return Script(list(message.input_ids), Finish("stop", 0))


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("one two", [IDS]),
        (["one two", "hello"], [IDS, tiny_tokenizer().encode("hello")]),
        (IDS, [IDS]),
        ([IDS, [5, 6]], [IDS, [5, 6]]),
    ],
    ids=["text", "texts", "ids", "lists of ids"],
)
async def test_every_way_to_write_a_prompt(prompt: Any, read: list[list[int]]) -> None:
    async with api_world(says("ok")) as world, sdk(world.url) as client:
        answer = await client.completions.create(model="tiny", prompt=prompt, n=2)
        assert [choice.index for choice in answer.choices] == list(range(2 * len(read)))
        assert [choice.text for choice in answer.choices] == ["ok"] * (2 * len(read))
        assert [message.input_ids for message in world.scheduler.received] == [ids for ids in read for _ in range(2)]
        assert world.scheduler.received[0].params.max_new_tokens == 16
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == sum(map(len, read))


async def test_a_stream_says_the_same() -> None:
    async with api_world(says("hello world")) as world, sdk(world.url) as client:
        stream = await client.completions.create(
            model="tiny", prompt=["a", "b"], stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        for index in range(2):
            mine = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == index]
            assert "".join(choice.text for choice in mine) == "hello world"
            assert mine[-1].finish_reason == "stop"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.prompt_tokens == 2


async def test_echo_repeats_the_prompt_with_its_logprobs() -> None:
    async with api_world(says(" three")) as world, sdk(world.url) as client:
        answer = await client.completions.create(model="tiny", prompt="one two", echo=True, logprobs=1, max_tokens=1)
        choice = answer.choices[0]
        assert choice.text == "one two three"[: len(choice.text)]
        assert choice.logprobs is not None
        ids = [*IDS, tiny_tokenizer().encode(" three")[0]]
        assert choice.logprobs.token_logprobs == [None, *(-token / 100 for token in ids[1:])]
        assert choice.logprobs.text_offset is not None
        assert choice.logprobs.tokens is not None
        for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
            assert choice.text[offset:].startswith(token)


async def test_offsets_count_only_what_is_shown() -> None:
    """A special token in the prompt has a log-probability and no text."""
    async with api_world(says(" three")) as world:
        body = {"prompt": [1, *IDS], "echo": True, "logprobs": 0, "max_tokens": 1}
        (choice,) = (await post(f"{world.url}/v1/completions", body)).json()["choices"]
        tokens, offsets = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]
        assert choice["text"].startswith("one two")
        assert (tokens[0], offsets[:2]) == ("<|start|>", [0, 0])
        assert all(choice["text"][at:].startswith(token) for token, at in zip(tokens[1:], offsets[1:], strict=True))


async def test_echo_without_new_tokens_scores_the_prompt() -> None:
    async with api_world(says(" three")) as world:
        body = {"prompt": "one two", "echo": True, "max_tokens": 0, "logprobs": 0}
        (choice,) = (await post(f"{world.url}/v1/completions", body)).json()["choices"]
        assert choice["text"] == "one two"
        assert len(choice["logprobs"]["tokens"]) == len(IDS)


async def test_echo_in_a_stream_comes_first_and_once() -> None:
    async with api_world(says(" three four")) as world:
        body = {"prompt": IDS, "echo": True, "stream": True, "logprobs": 0}
        got = [event.data["choices"][0] for event in await events(f"{world.url}/v1/completions", body) if event.id]
        assert "".join(choice["text"] for choice in got) == "one two three four"
        offsets = [offset for choice in got for offset in choice["logprobs"]["text_offset"]]
        assert offsets == sorted(offsets)


async def test_a_resumed_answer_is_whole_when_it_is_not_streamed() -> None:
    tokens = tiny_tokenizer().encode("one two three")
    async with api_world(lambda message: Script(tokens[len(message.output_ids) :], Finish("stop", None))) as world:
        for echoed in (False, True):
            body = {"prompt": "hello", "echo": echoed, "baton_resume": {"output_ids": [tokens[:1]]}}
            answer = (await post(f"{world.url}/v1/completions", body)).json()
            assert answer["choices"][0]["text"] == ("hello" if echoed else "") + "one two three"
            assert answer["usage"]["completion_tokens"] == len(tokens)


async def test_the_answer_of_each_prompt_is_its_own() -> None:
    async with api_world(echo) as world, sdk(world.url) as client:
        answer = await client.completions.create(model="tiny", prompt=["one", "two two"], max_tokens=50)
        texts = [tiny_tokenizer().decode(tiny_tokenizer().encode(text)[:-1]) for text in ("one", "two two")]
        assert [choice.text for choice in answer.choices] == texts
