"""Tool calls through the chat route, seen by the openai SDK."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from support.api_world import OPTIONS, api_world, says
from support.http import HELLO, Event, events, post, sdk
from support.scripted_scheduler import Script
from support.tiny_tokenizer import tiny_tokenizer

HERMES = replace(OPTIONS, tool_call_parser="hermes")
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
]
PARIS = {"city": "Paris"}
CALL = 'Look. <tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TOKENS = tiny_tokenizer().encode(CALL)


async def test_a_whole_answer_has_the_calls() -> None:
    async with api_world(says(CALL), HERMES) as world, sdk(world.url) as client:
        answer = await client.chat.completions.create(model="tiny", messages=HELLO, tools=TOOLS, n=2)
        for choice in answer.choices:
            assert (choice.message.content, choice.finish_reason) == ("Look.", "tool_calls")
            (call,) = choice.message.tool_calls or []
            assert call.type == "function"
            assert (call.function.name, json.loads(call.function.arguments)) == ("weather", PARIS)
        first, second = (choice.message.tool_calls or [] for choice in answer.choices)
        assert first[0].id != second[0].id


async def test_a_stream_has_them_in_pieces() -> None:
    async with api_world(says(CALL), HERMES) as world, sdk(world.url) as client:
        stream = client.chat.completions.stream(model="tiny", messages=HELLO, tools=TOOLS)
        async with stream as opened:
            final = await opened.get_final_completion()
        choice = final.choices[0]
        assert (choice.message.content, choice.finish_reason) == ("Look.", "tool_calls")
        assert [call.function.name for call in choice.message.tool_calls or []] == ["weather"]
        got = await events(f"{world.url}/v1/chat/completions", {"messages": HELLO, "stream": True, "tools": TOOLS})
        pieces = [event for event in got if event.data != "[DONE]" and _calls(event)]
        assert len(pieces) > 2  # arguments come as they are written
        assert [token for event in got if event.id for token in event.id[2:]] == [*TOKENS, 0]


async def test_a_stream_resumed_elsewhere_goes_on_in_the_middle_of_a_call() -> None:
    body = {"messages": HELLO, "stream": True, "tools": TOOLS, "seed": 1}
    async with api_world(says(CALL), HERMES) as first:
        whole = await events(f"{first.url}/v1/chat/completions", body)
    async with api_world(lambda message: Script([*TOKENS, 0][len(message.output_ids) :]), HERMES) as second:
        for broke in range(1, len(whole) - 2, 3):
            seen = whole[:broke]
            ids = [token for event in seen if event.id is not None for token in event.id[2:]]
            resume = {"output_ids": [ids], "id": whole[0].data["id"], "created": whole[0].data["created"]}
            rest = await events(f"{second.url}/v1/chat/completions", {**body, "baton_resume": resume})
            assert _said([*seen, *rest]) == _said(whole)
            answer = await post(f"{second.url}/v1/chat/completions", {**body, "stream": False, "baton_resume": resume})
            assert answer.json()["choices"][0]["message"]["tool_calls"][0]["id"] == _said(whole)[1]
            assert answer.json()["choices"][0]["message"]["content"] == "Look."


@pytest.mark.parametrize(
    ("options", "fields"),
    [(OPTIONS, {"tools": TOOLS}), (HERMES, {}), (HERMES, {"tools": TOOLS, "tool_choice": "none"})],
    ids=["no parser", "no tools", "none wanted"],
)
async def test_without_tools_or_parser_the_text_is_left_alone(options: Any, fields: dict[str, Any]) -> None:
    async with api_world(says(CALL), options) as world:
        answer = (await post(f"{world.url}/v1/chat/completions", {"messages": HELLO, **fields})).json()
        assert answer["choices"][0]["message"] == {"content": CALL, "role": "assistant", "refusal": None}
        assert answer["choices"][0]["finish_reason"] == "stop"


async def test_a_marker_that_is_a_special_token_is_seen() -> None:
    async with api_world(says("ok"), replace(OPTIONS, tool_call_parser="mistral")) as world:
        for tools in (TOOLS, []):
            await post(f"{world.url}/v1/chat/completions", {"messages": HELLO, "tools": tools})
        assert [message.params.skip_special_tokens for message in world.scheduler.received] == [False, True]


def _calls(event: Event) -> list[dict[str, Any]]:
    choices = event.data["choices"]
    found: list[dict[str, Any]] = choices[0]["delta"].get("tool_calls", []) if choices else []
    return found


def _said(stream: list[Event]) -> tuple[str, str, str, str]:
    """Text, id, name and arguments of the one call."""
    chunks = [event for event in stream if event.data != "[DONE]"]
    text = "".join(event.data["choices"][0]["delta"].get("content") or "" for event in chunks)
    calls = [call for event in chunks for call in _calls(event)]
    names = "".join(call["function"].get("name", "") for call in calls)
    arguments = "".join(call["function"]["arguments"] for call in calls)
    return text, "".join(call.get("id", "") for call in calls), names, arguments
