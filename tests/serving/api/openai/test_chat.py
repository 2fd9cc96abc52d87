"""Chat completions, through the real openai SDK wherever it can say it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import openai
import pytest
from support.api_world import CONTEXT, OPTIONS, api_world, says
from support.http import HELLO, Event, events, post, sdk
from support.scripted_scheduler import Script
from support.tiny_tokenizer import tiny_tokenizer

from baton_serving.runtime.messages import Failure, Finish, GenerateInput, HandoffTicket

TEXT = "hello world 😀, naïve café"
TOKENS = tiny_tokenizer().encode(TEXT)


async def test_a_whole_answer() -> None:
    async with api_world(says(TEXT, cached=4)) as world, sdk(world.url) as client:
        answer = await client.chat.completions.create(model="tiny", messages=HELLO, temperature=0)
        message = world.scheduler.received[0]
        assert answer.choices[0].message.content == TEXT
        assert answer.choices[0].finish_reason == "stop"
        assert (answer.model, answer.system_fingerprint) == ("tiny", "d1ge57")
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
            len(message.input_ids),
            len(TOKENS) + 1,
        )
        assert answer.usage.prompt_tokens_details.cached_tokens == 4
        prompt = tiny_tokenizer().decode(message.input_ids)
        assert prompt == "<|start|>user\nhow are you?<|end|><|start|>assistant\n"
        assert message.params.max_new_tokens == CONTEXT - len(message.input_ids)


async def test_a_stream_says_the_same() -> None:
    async with api_world(says(TEXT)) as world, sdk(world.url) as client:
        stream = await client.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        assert deltas[0].role == "assistant"
        assert "".join(delta.content or "" for delta in deltas) == TEXT
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == len(TOKENS) + 1
        assert len({chunk.id for chunk in chunks}) == 1


async def test_usage_is_only_streamed_when_asked_for() -> None:
    async with api_world(says("a")) as world:
        got = await events(f"{world.url}/v1/chat/completions", {"messages": HELLO, "stream": True})
        assert got[-1].data == "[DONE]"
        assert all(event.data["usage"] is None for event in got[:-1])


async def test_several_choices_have_seeds_of_their_own() -> None:
    async with api_world(says("hello")) as world, sdk(world.url) as client:
        answer = await client.chat.completions.create(model="tiny", messages=HELLO, n=3, seed=7)
        assert [(choice.index, choice.message.content) for choice in answer.choices] == [
            (index, "hello") for index in range(3)
        ]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(world.scheduler.received[0].input_ids)
        seeds = [message.params.seed for message in world.scheduler.received]
        assert (seeds[0], len(set(seeds))) == (7, 3)
        assert len({message.rid for message in world.scheduler.received}) == 3


async def test_logprobs() -> None:
    async with api_world(says(TEXT)) as world, sdk(world.url) as client:
        answer = await client.chat.completions.create(
            model="tiny", messages=HELLO, logprobs=True, top_logprobs=2, max_tokens=2
        )
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        tokens = TOKENS[:2]
        assert [entry.logprob for entry in logprobs.content] == [-token / 100 for token in tokens]
        assert all(len(entry.top_logprobs) == 2 for entry in logprobs.content)
        assert b"".join(bytes(entry.bytes or []) for entry in logprobs.content) == b"hello world"


async def test_streamed_logprobs_come_with_their_tokens() -> None:
    async with api_world(says("hello world")) as world, sdk(world.url) as client:
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True, stream=True)
        tokens = [
            bytes(entry.bytes or [])
            async for chunk in stream
            for entry in (chunk.choices[0].logprobs.content or [] if chunk.choices[0].logprobs else [])
        ]
        assert b"".join(tokens) == b"hello world<|end|>"


async def test_a_stop_string_ends_the_answer_and_the_scheduler_hears_it() -> None:
    async with api_world(says("one two three four")) as world, sdk(world.url) as client:
        answer = await client.chat.completions.create(model="tiny", messages=HELLO, stop=["three"])
        assert answer.choices[0].message.content == "one two "
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        await world.scheduler.until(lambda: bool(world.scheduler.stopped))
        assert world.scheduler.stopped[0].completion_tokens == answer.usage.completion_tokens


async def test_the_length_limit_is_named() -> None:
    async with api_world(says(TEXT)) as world, sdk(world.url) as client:
        answer = await client.chat.completions.create(model="tiny", messages=HELLO, max_completion_tokens=3)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3


async def test_the_last_message_is_continued() -> None:
    async with api_world(says("b")) as world:
        messages = [*HELLO, {"role": "assistant", "content": "one two"}]
        body = {"messages": messages, "continue_final_message": True}
        assert (await post(f"{world.url}/v1/chat/completions", body)).status_code == 200
        assert tiny_tokenizer().decode(world.scheduler.received[0].input_ids).endswith("assistant\none two")


async def test_text_parts_are_joined() -> None:
    async with api_world(says("b")) as world, sdk(world.url) as client:
        parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
        await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}])  # type: ignore[list-item,misc]
        assert "user\none\ntwo<|end|>" in tiny_tokenizer().decode(world.scheduler.received[0].input_ids)


async def test_events_carry_their_token_ids() -> None:
    """docs/internals/stream-ids.md: [choice, position, ids ...]; together they are the answer's tokens."""
    async with api_world(says(TEXT), stream_interval=2) as world:
        got = await events(f"{world.url}/v1/chat/completions", {"messages": HELLO, "stream": True, "n": 2})
        for choice in range(2):
            ids: list[int] = []
            for event in got:
                if event.id is not None and event.id[0] == choice:
                    assert event.data["choices"][0]["index"] == choice
                    assert event.id[1] == len(ids)
                    ids += event.id[2:]
            assert ids == [*TOKENS, 0]


async def test_a_stream_resumed_elsewhere_goes_on_alike() -> None:
    """Break a stream after each of its events: what a second worker adds completes it."""
    body = {"messages": HELLO, "stream": True, "seed": 5, "stop": ["zzz"]}
    async with api_world(says(TEXT)) as first:
        whole = await events(f"{first.url}/v1/chat/completions", body)
    async with api_world(lambda message: Script([*TOKENS, 0][len(message.output_ids) :])) as second:
        for broke in range(1, len(whole) - 2):
            seen = whole[:broke]
            ids = [token for event in seen if event.id is not None for token in event.id[2:]]
            resume = {"output_ids": [ids], "id": whole[0].data["id"], "created": whole[0].data["created"]}
            rest = await events(f"{second.url}/v1/chat/completions", {**body, "baton_resume": resume})
            assert spoken([*seen, *rest]) == spoken(whole)
            assert (rest[0].data["choices"][0]["delta"].get("role") is None) == bool(ids)
            assert second.scheduler.received[-1].output_ids == ids


def spoken(stream: list[Event]) -> tuple[str, set[tuple[str, int]], str]:
    """The text, the identity of the chunks, and how the stream ends."""
    chunks = [event.data for event in stream if event.data != "[DONE]"]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    return text, {(chunk["id"], chunk["created"]) for chunk in chunks}, chunks[-1]["choices"][0]["finish_reason"]


async def test_handoff_fields_name_each_choices_transfer() -> None:
    async with api_world(says("a")) as world:
        handoff = {"transfer_id": "t", "peer": "w1", "attempt": 2}
        body = {"messages": HELLO, "n": 2, "baton_handoff": handoff, "priority": 3}
        assert (await post(f"{world.url}/v1/chat/completions", body)).status_code == 200
        assert [message.handoff for message in world.scheduler.received] == [
            HandoffTicket(transfer_id="t.0", peer="w1", attempt=2),
            HandoffTicket(transfer_id="t.1", peer="w1", attempt=2),
        ]
        assert world.scheduler.received[0].priority == 3


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("queue_full", openai.RateLimitError),
        ("unavailable", openai.InternalServerError),
        ("invalid_request_error", openai.BadRequestError),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_by_the_scheduler_keeps_its_status(code: str, error: type[Exception], stream: bool) -> None:
    async with api_world(lambda message: Script([], Failure(code, "no room"))) as world, sdk(world.url) as client:
        with pytest.raises(error, match="no room"):
            await client.chat.completions.create(model="tiny", messages=HELLO, stream=stream)


def breaks(after: str, code: str) -> Callable[[GenerateInput], Script]:
    return lambda message: Script(tiny_tokenizer().encode(after), Failure(code, "the peer is gone"))


async def test_a_failure_in_mid_stream_is_an_error_event_without_done() -> None:
    async with api_world(breaks("one two", "unavailable")) as world:
        got = await events(f"{world.url}/v1/chat/completions", {"messages": HELLO, "stream": True})
        assert got[-1].data == {
            "error": {"message": "the peer is gone", "type": "server_error", "param": None, "code": "unavailable"}
        }
        async with sdk(world.url) as client:
            stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
            with pytest.raises(openai.APIError, match="the peer is gone"):
                async for _ in stream:
                    pass


async def test_an_aborted_request_is_no_success() -> None:
    async with api_world(lambda message: Script([5], Finish("abort", "asked"))) as world:
        answer = await post(f"{world.url}/v1/chat/completions", {"messages": HELLO})
        assert (answer.status_code, answer.json()["error"]["code"]) == (499, "cancelled")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_aborts_its_request(stream: bool) -> None:
    gate = threading.Event()
    async with api_world(says(TEXT, gate=gate, free=2)) as world, sdk(world.url) as client:
        if stream:
            answer = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
            await anext(aiter(answer))
            await answer.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                await client.with_options(timeout=0.5).chat.completions.create(model="tiny", messages=HELLO)
        await world.scheduler.until(lambda: bool(world.scheduler.aborted))
        assert world.scheduler.aborted[0].rid == world.scheduler.received[0].rid
        assert world.manager.open_requests == 0


async def test_another_name_for_the_model_is_fine_when_it_is_default() -> None:
    async with api_world(says("a"), OPTIONS) as world, sdk(world.url) as client:
        assert (await client.chat.completions.create(model="default", messages=HELLO)).model == "tiny"
        with pytest.raises(openai.NotFoundError, match="'tiny' is"):
            await client.chat.completions.create(model="other", messages=HELLO)
