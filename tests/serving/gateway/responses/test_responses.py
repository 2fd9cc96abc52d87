"""`/v1/responses` through the openai SDK, over a gateway and workers with the real chat route."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import openai
import pytest
from support.api_world import OPTIONS, World, api_world, says
from support.gateway_over import gateway_before
from support.http import post, sdk
from support.scripted_scheduler import Script
from support.tiny_tokenizer import tiny_tokenizer

from baton_serving.runtime.messages import Failure, Finish

TEXT = "hello world"
CALL = 'Look. <tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
TOOLS: list[Any] = [{"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}]


@asynccontextmanager
async def gateway(script: Any) -> AsyncIterator[tuple[World, str]]:
    async with (
        api_world(script, replace(OPTIONS, tool_call_parser="hermes")) as world,
        gateway_before(world.url, model="tiny") as url,
    ):
        yield world, url


async def test_a_whole_response() -> None:
    async with gateway(says(TEXT, cached=3)) as (world, url), sdk(url) as client:
        answer = await client.responses.create(model="tiny", input="how are you?", instructions="be brief")
        assert (answer.output_text, answer.status) == (TEXT, "completed")
        assert answer.usage is not None
        assert answer.usage.input_tokens_details.cached_tokens == 3
        assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
        prompt = tiny_tokenizer().decode(world.scheduler.received[0].input_ids)
        assert prompt.startswith("<|start|>system\nbe brief<|end|><|start|>user\nhow are you?<|end|>")


async def test_a_streamed_response_has_the_official_events() -> None:
    async with gateway(says(CALL)) as (_, url), sdk(url) as client:
        got = []
        async with client.responses.stream(model="tiny", input="hi", tools=TOOLS) as stream:
            async for event in stream:
                got.append(event)
            final = await stream.get_final_response()
        kinds = [event.type for event in got]
        assert kinds[:4] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
        ]
        assert kinds[-1] == "response.completed"
        for kind in ("output_text.delta", "output_text.done", "function_call_arguments.delta", "output_item.done"):
            assert f"response.{kind}" in kinds
        assert [event.sequence_number for event in got] == list(range(len(got)))
        message, call = final.output
        assert (final.output_text, message.type, call.type) == ("Look.", "message", "function_call")
        assert call.type == "function_call"
        assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Paris"})
        assert final.usage is not None
        assert final.usage.output_tokens > 0


async def test_a_conversation_with_calls_comes_back_as_input() -> None:
    async with gateway(says("ok")) as (world, url), sdk(url) as client:
        items: list[Any] = [
            {"role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
            {"role": "user", "content": "weather?"},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        ]
        await client.responses.create(
            model="tiny", input=items, tools=TOOLS, max_output_tokens=9, extra_body={"seed": 7}
        )
        message = world.scheduler.received[0]
        assert (message.params.max_new_tokens, message.params.seed) == (9, 7)
        assert "system\nrules" in tiny_tokenizer().decode(message.input_ids)


async def test_an_answer_cut_short_is_incomplete() -> None:
    async with gateway(lambda message: Script([5, 6], Finish("length"))) as (_, url), sdk(url) as client:
        answer = await client.responses.create(model="tiny", input="a")
        assert answer.incomplete_details is not None
        assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        kinds = [event.type async for event in await client.responses.create(model="tiny", input="a", stream=True)]
        assert kinds[-1] == "response.incomplete"


async def test_a_failure_in_mid_stream_is_told() -> None:
    broken = threading.Event()
    failure = Failure("invalid_request_error", "no more")
    script = Script(tiny_tokenizer().encode("one two three"), failure, gate=broken, free=2)
    async with gateway(lambda message: script) as (_, url), sdk(url) as client:
        got = []
        async for event in await client.responses.create(model="tiny", input="a", stream=True):
            got.append(event)
            if event.type == "response.output_text.delta":
                broken.set()
        assert got[-1].type == "response.failed"
        assert got[-1].response.error is not None
        assert got[-1].response.error.message == "no more"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"content": "a"}]}, "input[0].role"),
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"temperature": "hot"}, "temperature"),
    ],
    ids=str,
)
async def test_what_is_not_served_is_named(responses_url: str, fields: dict[str, Any], param: str) -> None:
    answer = await post(f"{responses_url}/v1/responses", {"input": "a", **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_workers_refusal_keeps_its_status(responses_url: str) -> None:
    async with sdk(responses_url) as client:
        with pytest.raises(openai.BadRequestError, match="cannot be forced"):
            await client.responses.create(model="tiny", input="a", tools=TOOLS, tool_choice="required")
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(model="other", input="a")


@pytest.fixture
async def responses_url() -> AsyncIterator[str]:
    async with gateway(says("ok")) as (_, url):
        yield url
