"""Seeded answers of a deterministic worker, however its requests travel."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass

import httpx
import pytest
import torch
from support.baton_processes import BATON_TINY, BatonProcess, BatonProcesses, free_port
from support.disaggregation import MODEL, Body, ask, ask_pair, settled
from support.http import parse

TOKENS = 160
FLAGS = ("--served-model-name", MODEL, "--max-running-requests", "16", "--page-size", "16", "--device", "cuda")
DETERMINISTIC = ("--dtype", "bfloat16", "--enable-deterministic-inference")
ROOM = ("--max-total-tokens", "24000")
NO_ROOM = ("--max-total-tokens", "1600", "--schedule-conservativeness", "0.1")


@dataclass
class Workers:
    prefill: BatonProcess
    decode: BatonProcess
    other: BatonProcess


@pytest.fixture
def workers(processes: BatonProcesses, monkeypatch: pytest.MonkeyPatch) -> Workers:
    """A pair on two GPUs, and another decode worker, which has room for a part of the requests alone."""
    bootstrap = processes.bootstrap(free_port())

    def start(mode: str, devices: str, *room: str) -> BatonProcess:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
        transfer = (
            "--disaggregation-transfer-backend",
            "mooncake",
            "--disaggregation-transfer-protocol",
            "nvlink_intra",
        )
        address = ("--disaggregation-mode", mode, "--disaggregation-bootstrap-addr", str(bootstrap.facts["grpc"]))
        return processes.worker(mode, BATON_TINY, *FLAGS, *DETERMINISTIC, *address, *transfer, *room)

    started = Workers(start("prefill", "0,1", *ROOM), start("decode", "1,0", *ROOM), start("decode", "1,0", *NO_ROOM))
    for worker in (started.prefill, started.decode, started.other):
        worker.wait_announced()
    return started


def body_of(number: int) -> Body:
    sampling: Body = {"max_new_tokens": TOKENS, "temperature": 1.0, "top_p": 0.95, "ignore_eos": True}
    prompt = [4 + (31 * n * n + 7 * number) % 900 for n in range(30 + 60 * number)]
    return {"input_ids": prompt, "sampling_params": {**sampling, "sampling_seed": number}}


async def moved(client: httpx.AsyncClient, source: BatonProcess, target: BatonProcess, body: Body) -> list[int]:
    """The answer to a request that changes workers after twenty tokens."""
    rid = uuid.uuid4().hex
    body = {**body, "rid": rid}
    async with client.stream("POST", f"{source.url}/generate", json={**body, "stream": True}) as response:
        events = parse(response.aiter_lines())
        async for event in events:
            if len(event.data["output_ids"]) >= 20:
                break
        reply = await client.post(f"{source.url}/baton/move", json={"rid": rid, "transfer_id": rid})
        assert reply.status_code == 200, reply.text
        ticket = {"transfer_id": rid, "peer": source.key}
        rest = {**body, "baton_resume": {"output_ids": [reply.json()["output_ids"]]}, "baton_handoff": ticket}
        answer = await ask(client, target, rest)
        async for _ in events:
            pass
    tokens: list[int] = answer.choices[0]["output_ids"]
    return tokens


@pytest.mark.gpu
@pytest.mark.timeout(300)
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
async def test_seeded_answers_do_not_depend_on_the_way_of_a_request(
    client: httpx.AsyncClient, workers: Workers
) -> None:
    """Alone on one worker; all at once through a pair; moved from worker to worker; taken off the batch for want of
    pages and computed again."""
    bodies = [body_of(number) for number in range(8)]
    expected = [(await ask(client, workers.decode, body)).choices[0]["output_ids"] for body in bodies]
    pairs = await asyncio.gather(*(ask_pair(client, workers.prefill, workers.decode, body) for body in bodies))
    assert [decoded.choices[0]["output_ids"] for _, decoded in pairs] == expected
    for body, wanted in zip(bodies[2:4], expected[2:4], strict=True):
        assert await moved(client, workers.decode, workers.other, body) == wanted
    answers = await asyncio.gather(*(ask(client, workers.other, body) for body in bodies))
    assert [answer.choices[0]["output_ids"] for answer in answers] == expected
    assert workers.other.metrics()["baton_retractions_total"] > 0
    await settled(workers.prefill, workers.decode, workers.other)
