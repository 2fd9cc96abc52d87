"""Embeddings, through the openai SDK."""

from __future__ import annotations

from dataclasses import replace

import openai
import pytest
from support.api_world import OPTIONS, VOCAB, api_world, says
from support.http import HELLO, post, sdk
from support.scripted_scheduler import Script

from baton_serving.runtime.messages import Finish

EMBEDS = replace(OPTIONS, is_embedding=True)


async def test_every_way_to_write_inputs_and_vectors() -> None:
    async with (
        api_world(lambda message: Script([], Finish("length")), EMBEDS) as world,
        sdk(world.url) as client,
    ):
        for count, given in ((1, "hello"), (2, ["hello", "world"]), (1, [5, 6]), (2, [[5], [6, 7]])):
            plain = await client.embeddings.create(model="tiny", input=given, encoding_format="float")
            packed = await client.embeddings.create(model="tiny", input=given)  # base64
            assert [item.index for item in plain.data] == list(range(count))
            for left, right in zip(plain.data, packed.data, strict=True):
                assert left.embedding == [0.6, 0.0, 0.8]
                assert right.embedding == pytest.approx(left.embedding)
            assert plain.usage.prompt_tokens == plain.usage.total_tokens > 0
        assert all(message.embed and message.params.max_new_tokens == 0 for message in world.scheduler.received)
        with pytest.raises(openai.BadRequestError, match="dimensions must be 3"):
            await client.embeddings.create(model="tiny", input="a", dimensions=2)


async def test_wrong_inputs_are_named() -> None:
    async with api_world(says(""), EMBEDS) as world:
        for given in ("", [], [""], ["a", 1], [VOCAB], [[-1]], None, 5):
            answer = await post(f"{world.url}/v1/embeddings", {"input": given})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")
        answer = await post(f"{world.url}/v1/embeddings", {"input": "a", "encoding_format": "int8"})
        assert answer.json()["error"]["param"] == "encoding_format"
        assert world.scheduler.received == []


async def test_a_worker_does_one_of_both() -> None:
    async with api_world(says("a")) as world:
        assert (await post(f"{world.url}/v1/embeddings", {"input": "a"})).status_code == 400
    async with api_world(says("a"), EMBEDS) as world:
        chat, prompt, native = {"messages": HELLO}, {"prompt": "a"}, {"text": "a"}
        for path, body in (("/v1/chat/completions", chat), ("/v1/completions", prompt), ("/generate", native)):
            answer = await post(world.url + path, body)
            assert (answer.status_code, "embeds" in answer.json()["error"]["message"]) == (400, True)
