"""/generate: requests and responses as SGLang's users know them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.api_world import OPTIONS, api_world, says
from support.http import events, post
from support.scripted_scheduler import Script
from support.tiny_tokenizer import tiny_tokenizer

from baton_serving.runtime.messages import Finish, GenerateInput, HandoffTicket

TEXT = "hello world 😀"
TOKENS = tiny_tokenizer().encode(TEXT)


async def test_a_whole_answer() -> None:
    async with api_world(says(TEXT, cached=2)) as world:
        body = {"text": "one two", "rid": "mine", "sampling_params": {"temperature": 0, "max_new_tokens": 50}}
        answer = (await post(f"{world.url}/generate", body)).json()
        assert answer["text"] == TEXT
        assert answer["output_ids"] == [*TOKENS, 0]
        meta = answer["meta_info"]
        assert meta.pop("e2e_latency") > 0
        assert meta == {
            "id": "mine",
            "finish_reason": {"type": "stop", "matched": 0},
            "prompt_tokens": len(tiny_tokenizer().encode("one two")),
            "completion_tokens": len(TOKENS) + 1,
            "cached_tokens": 2,
            "weight_version": "default",
            "weight_digest": "d1ge57",
        }
        assert world.scheduler.received[0].params.greedy


async def test_a_batch_is_a_list() -> None:
    async with api_world(says("ok")) as world:
        body: dict[str, Any] = {
            "input_ids": [[5, 6], [7]],
            "sampling_params": [{"max_new_tokens": 1}, {"max_new_tokens": 9, "n": 2}],
        }
        answers = (await post(f"{world.url}/generate", body)).json()
        assert [answer["text"] for answer in answers[1:]] == ["ok", "ok"]
        assert answers[0]["meta_info"]["finish_reason"] == {"type": "length", "length": 1}
        assert [message.input_ids for message in world.scheduler.received] == [[5, 6], [7], [7]]
        assert [message.params.max_new_tokens for message in world.scheduler.received] == [1, 9, 9]


async def test_a_batch_of_one_is_a_list() -> None:
    async with api_world(says("ok")) as world:
        assert isinstance((await post(f"{world.url}/generate", {"text": ["one"]})).json(), list)
        assert isinstance((await post(f"{world.url}/generate", {"text": "one"})).json(), dict)


@pytest.mark.parametrize("disjoint", [False, True])
async def test_events_hold_all_so_far_or_with_stream_output_what_is_new(disjoint: bool) -> None:
    options = OPTIONS if not disjoint else type(OPTIONS)(**{**vars(OPTIONS), "stream_output": True})
    async with api_world(says(TEXT), options) as world:
        got = await events(f"{world.url}/generate", {"text": "a", "stream": True, "return_logprob": True})
        assert got[-1].data == "[DONE]"
        data = [event.data for event in got[:-1]]
        tokens = [*TOKENS, 0]
        if disjoint:
            assert "".join(each["text"] for each in data) == TEXT
            assert [token for each in data for token in each["output_ids"]] == tokens
        else:
            assert data[-1]["text"] == TEXT
            assert all(data[-1]["text"].startswith(each["text"]) for each in data)
            assert data[-1]["output_ids"] == tokens
            assert len(data[-1]["meta_info"]["output_token_logprobs"]) == len(tokens)
        assert [token for event in got[:-1] for token in (event.id or [])[2:]] == tokens
        assert "index" not in data[0]


async def test_logprobs_of_prompt_and_answer() -> None:
    async with api_world(says("one")) as world:
        body = {
            "input_ids": [5, 6, 7],
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": 2,
            "token_ids_logprob": [9],
            "return_text_in_logprobs": True,
            "sampling_params": {"max_new_tokens": 1},
        }
        meta = (await post(f"{world.url}/generate", body)).json()["meta_info"]
        text = [tiny_tokenizer().decode([token]) for token in range(10)]
        assert meta["input_token_logprobs"] == [[None, 5, text[5]], [-0.06, 6, text[6]], [-0.07, 7, text[7]]]
        assert meta["input_top_logprobs"][:2] == [None, [[-0.06, 6, text[6]], [-0.07, 7, text[7]]]]
        assert meta["input_token_ids_logprobs"] == [None, [[-0.09, 9, text[9]]], [[-0.09, 9, text[9]]]]
        assert [len(meta[f"output_{name}_logprobs"]) for name in ("token", "top", "token_ids")] == [1, 1, 1]


async def test_logprobs_from_the_middle_of_the_prompt() -> None:
    async with api_world(says("one")) as world:
        body = {"input_ids": [5, 6, 7], "return_logprob": True, "logprob_start_len": 2}
        meta = (await post(f"{world.url}/generate", body)).json()["meta_info"]
        assert meta["input_token_logprobs"] == [[-0.07, 7, None]]
        meta = (await post(f"{world.url}/generate", {"input_ids": [5], "return_logprob": True})).json()["meta_info"]
        assert "input_token_logprobs" not in meta


async def test_a_resumed_stream_counts_what_was_sent() -> None:
    async with api_world(lambda message: Script([*TOKENS, 0][len(message.output_ids) :])) as world:
        body = {"text": "a", "stream": True, "baton_resume": {"output_ids": [TOKENS[:2]]}}
        got = await events(f"{world.url}/generate", body)
        assert (got[0].id or [])[:3] == [0, 2, TOKENS[2]]
        assert got[-2].data["text"] == TEXT
        assert got[-2].data["output_ids"] == [*TOKENS, 0]
        assert got[-2].data["meta_info"]["completion_tokens"] == len(TOKENS) + 1


@pytest.mark.parametrize("start", [-1, 0])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_resumed_answer_has_the_log_probabilities_of_all_tokens(start: int, stream: bool) -> None:
    async with api_world(lambda message: Script([*TOKENS, 0][len(message.output_ids) :])) as world:
        body = {"input_ids": [5, 6], "return_logprob": True, "top_logprobs_num": 2, "logprob_start_len": start}
        whole = (await post(f"{world.url}/generate", body)).json()
        body |= {"stream": stream, "baton_resume": {"output_ids": [TOKENS[:2]]}}
        if stream:
            resumed = (await events(f"{world.url}/generate", body))[-2].data
        else:
            resumed = (await post(f"{world.url}/generate", body)).json()
    assert resumed["output_ids"] == [*TOKENS, 0]
    names = [name for name in whole["meta_info"] if name.endswith("logprobs")]
    assert len(names) == (4 if start == 0 else 2)
    assert {name: resumed["meta_info"][name] for name in names} == {name: whole["meta_info"][name] for name in names}


ROUTER_EXTRAS = {
    "model": None,
    "return_text_in_logprobs": False,
    "log_metrics": True,
    "background": False,
    "no_logs": False,
    "return_bytes": False,
    "return_entropy": False,
    "return_hidden_states": False,
}


async def test_the_body_of_sglangs_router() -> None:
    async with api_world(says("ok")) as world:
        body = {
            **ROUTER_EXTRAS,
            "text": "hello",
            "sampling_params": {"max_new_tokens": 8},
            "stream": False,
            "bootstrap_host": "10.0.0.1",
            "bootstrap_port": 8998,
            "bootstrap_room": 2**63 - 1,
        }
        assert (await post(f"{world.url}/generate", body)).status_code == 200
        room = str(2**63 - 1)
        assert world.scheduler.received[0].handoff == HandoffTicket(transfer_id=room, peer="10.0.0.1:8998")


async def test_bootstrap_fields_per_choice() -> None:
    async with api_world(says("ok")) as world:
        body = {
            "text": ["a", "b"],
            "bootstrap_host": ["h1", "h2"],
            "bootstrap_port": [None, 5],
            "bootstrap_room": [11, 12],
        }
        assert (await post(f"{world.url}/generate", body)).status_code == 200
        assert [message.handoff for message in world.scheduler.received] == [
            HandoffTicket(transfer_id="11", peer="h1"),
            HandoffTicket(transfer_id="12", peer="h2:5"),
        ]


async def test_one_room_for_several_choices() -> None:
    async with api_world(says("ok")) as world:
        body = {"text": "a", "sampling_params": {"n": 2}, "bootstrap_host": "h", "bootstrap_room": 7}
        assert (await post(f"{world.url}/generate", body)).status_code == 200
        assert [message.handoff for message in world.scheduler.received] == [
            HandoffTicket(transfer_id="7.0", peer="h"),
            HandoffTicket(transfer_id="7.1", peer="h"),
        ]


async def test_an_abort_by_rid_ends_the_answer_with_its_reason() -> None:
    def hang(message: GenerateInput) -> Script:
        return Script(TOKENS[:1], None)

    async with api_world(hang) as world:
        body = {"text": "a", "rid": "mine", "stream": True}
        streaming = asyncio.create_task(events(f"{world.url}/generate", body))
        await world.scheduler.until(lambda: bool(world.scheduler.received))
        for rid, found in (("min", False), ("mine", True)):
            assert (await post(f"{world.url}/abort_request", {"rid": rid})).json() == {"aborted": found}
        got = await streaming
        assert got[-2].data["meta_info"]["finish_reason"]["type"] == "abort"


async def test_the_timeout_header_bounds_a_request() -> None:
    async with api_world(lambda message: Script([5], None)) as world:
        answer = await post(f"{world.url}/generate", {"text": "a"}, headers={"x-request-timeout": "0.1"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        await world.scheduler.until(lambda: bool(world.scheduler.aborted))
        assert world.scheduler.received[0].deadline > 0


async def test_a_trace_travels_along() -> None:
    async with api_world(says("a")) as world:
        await post(f"{world.url}/generate", {"text": "a"}, headers={"x-request-id": "abc"})
        await post(f"{world.url}/generate", {"text": "a"}, headers={"traceparent": "00-1-2-01", "x-request-id": "abc"})
        assert [message.trace for message in world.scheduler.received] == ["abc", "00-1-2-01"]


async def test_two_requests_of_one_rid_do_not_mix() -> None:
    async with api_world(lambda message: Script([5], None)) as world:
        body = {"text": "a", "rid": "same"}
        first = asyncio.create_task(post(f"{world.url}/generate", body))
        await world.scheduler.until(lambda: bool(world.scheduler.received))
        second = await post(f"{world.url}/generate", body)
        assert (second.status_code, second.json()["error"]["param"]) == (400, "rid")
        first.cancel()
        await world.scheduler.until(lambda: bool(world.scheduler.aborted))
        world.scheduler.script = says("ok")
        assert (await post(f"{world.url}/generate", body)).json()["text"] == "ok"


async def test_a_finish_by_length() -> None:
    async with api_world(lambda message: Script(TOKENS, Finish("length"))) as world:
        answer = (await post(f"{world.url}/generate", {"text": "a"})).json()
        assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": len(TOKENS)}
