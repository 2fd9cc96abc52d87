"""A running request moves between two decode workers and goes on as if undisturbed."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from support.baton_processes import BatonProcess
from support.disaggregation import Body, Fleet, ask, fresh_prompt, settled
from support.http import parse

TOKENS = 300


def body_of(kind: str) -> Body:
    draw = random.Random(kind)
    sampling: Body = {"max_new_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    match kind:
        case "seeded":
            sampling |= {"temperature": 0.9, "sampling_seed": 77, "top_p": 0.9}
        case "penalties":
            sampling |= {"frequency_penalty": 0.5, "presence_penalty": 0.3, "repetition_penalty": 1.1}
        case "stop":
            sampling |= {"temperature": 1.0, "sampling_seed": 5, "stop": ["a word that never comes", "q7"]}
    return {"input_ids": fresh_prompt(200, draw), "sampling_params": sampling, "rid": uuid.uuid4().hex}


class Stream:
    """A streamed answer: `tokens` and `text` so far, and how it ended."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._events = parse(lines)
        self.tokens: list[int] = []
        self.text = ""
        self.finish = ""

    async def read(self, tokens: int = 1 << 30) -> Stream:
        """Read until there are so many tokens, or to the end."""
        async for event in self._events:
            if event.data == "[DONE]":
                break
            self.tokens, self.text = event.data["output_ids"], event.data["text"]
            reason = event.data["meta_info"]["finish_reason"]
            self.finish = reason["type"] if reason else ""
            if len(self.tokens) >= tokens:
                break
        return self


@asynccontextmanager
async def streaming(client: httpx.AsyncClient, worker: BatonProcess, body: Body) -> AsyncIterator[Stream]:
    async with client.stream("POST", f"{worker.url}/generate", json={**body, "stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        yield Stream(response.aiter_lines())


async def move(client: httpx.AsyncClient, worker: BatonProcess, rid: str, transfer_id: str) -> httpx.Response:
    return await client.post(f"{worker.url}/baton/move", json={"rid": rid, "transfer_id": transfer_id})


def resumed(body: Body, source: BatonProcess, transfer_id: str, output_ids: list[int]) -> Body:
    ticket = {"transfer_id": transfer_id, "peer": source.key}
    return {**body, "baton_resume": {"output_ids": [output_ids]}, "baton_handoff": ticket}


@pytest.mark.parametrize("kind", ["greedy", "seeded", "penalties", "stop"])
async def test_a_moved_stream_equals_the_undisturbed(client: httpx.AsyncClient, fleet: Fleet, kind: str) -> None:
    source, target = fleet.decodes[0], fleet.whole
    assert target is not None
    body = body_of(kind)
    wanted = (await ask(client, target, {**body, "rid": None})).choices[0]
    arrived = target.metrics()["baton_handoffs_arrived_total"]
    async with streaming(client, source, body) as first:
        await first.read(20)
        reply = await move(client, source, body["rid"], "move " + body["rid"])
        assert reply.status_code == 200, reply.text
        told: list[int] = reply.json()["output_ids"]
        assert 20 <= len(told) < TOKENS
        second = asyncio.create_task(ask(client, target, resumed(body, source, "move " + body["rid"], told)))
        await first.read()
        assert (first.finish, first.tokens) == ("handoff", told)
    answer = (await second).choices[0]
    assert answer["output_ids"] == wanted["output_ids"]
    assert answer["text"] == wanted["text"]
    assert answer["meta_info"]["finish_reason"] == wanted["meta_info"]["finish_reason"]
    assert target.metrics()["baton_handoffs_arrived_total"] == arrived + 1
    await settled(source, target)


async def test_a_request_that_nobody_can_take_goes_on_where_it_was(client: httpx.AsyncClient, fleet: Fleet) -> None:
    source, target = fleet.decodes[0], fleet.whole
    assert target is not None
    body = body_of("greedy")
    wanted = (await ask(client, target, {**body, "rid": None})).choices[0]
    async with streaming(client, source, body) as stream:
        await stream.read(20)
        told = (await move(client, source, body["rid"], "refused " + body["rid"])).json()["output_ids"]
        other = resumed(body, source, "refused " + body["rid"], [*told, 3])  # more than was generated
        assert (await ask(client, target, other)).status == 500
        await stream.read()
    assert (stream.finish, stream.tokens, stream.text) == ("length", wanted["output_ids"], wanted["text"])
    await settled(source, target)


async def test_an_offer_that_is_withdrawn_goes_on_where_it_was(client: httpx.AsyncClient, fleet: Fleet) -> None:
    """At once: a worker that nobody told would wait for the other much longer than this test may take."""
    source, transfer_id = fleet.decodes[0], "withdrawn"
    body = body_of("greedy")
    async with streaming(client, source, body) as stream, asyncio.timeout(20):
        await stream.read(20)
        assert (await move(client, source, body["rid"], transfer_id)).status_code == 200
        for known in (True, False):
            again = {"rid": body["rid"], "transfer_id": transfer_id, "withdraw": True}
            answer = await client.post(f"{source.url}/baton/move", json=again)
            assert answer.json()["known"] is known
            await stream.read(40 if known else TOKENS)
    assert (stream.finish, len(stream.tokens)) == ("length", TOKENS)
    await settled(source)


async def test_a_moving_request_whose_client_leaves(client: httpx.AsyncClient, fleet: Fleet) -> None:
    source = fleet.decodes[0]
    body = body_of("greedy")
    async with streaming(client, source, body) as stream:
        await stream.read(20)
        assert (await move(client, source, body["rid"], "left " + body["rid"])).status_code == 200
    await settled(source)


async def test_what_cannot_move_is_said_so(client: httpx.AsyncClient, fleet: Fleet) -> None:
    source = fleet.decodes[0]

    async def refusal(rid: str, transfer_id: str) -> tuple[int, Any]:
        reply = await move(client, source, rid, transfer_id)
        return reply.status_code, reply.json()["error"]["message"]

    status, message = await refusal("nobody", "t")
    assert (status, message) == (404, "no request 'nobody' with a choice 0 is open here")
    body = body_of("greedy")
    async with streaming(client, source, body) as stream:
        await stream.read(20)
        assert (await move(client, source, body["rid"], "twice " + body["rid"])).status_code == 200
        status, message = await refusal(body["rid"], "another " + body["rid"])
        assert (status, message) == (400, "the request is being handed over already")
    await settled(source)
