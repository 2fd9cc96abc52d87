"""Prefill and decode workers change places under load, as they are assigned, and no request notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from support.baton_processes import BatonProcesses
from support.disaggregation import MODEL, Fleet, settled, until

QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 24, "temperature": 0}


def listed(fleet: Fleet) -> dict[str, dict[str, Any]]:
    rows = httpx.get(f"{fleet.bootstrap.facts['http']}/workers", trust_env=False).json()["workers"]
    return {row["id"]: row for row in rows}


async def assign(fleet: Fleet, roles: dict[str, str]) -> None:
    """Tell each worker its role, "" for that it was started for, and return once they have it."""
    told = {
        name: {"revision": "r", "model": "", "goal": "serve", **({"role": role} if role else {})}
        for name, role in roles.items()
    }
    async with httpx.AsyncClient(trust_env=False) as client:
        (await client.put(f"{fleet.bootstrap.facts['http']}/assignments", json=told)).raise_for_status()
    wanted = {fleet.prefills[0].key: "prefill", fleet.decodes[0].key: "decode"}
    wanted |= {name: role for name, role in roles.items() if role}
    await until(lambda: {name: listed(fleet)[name]["role"] for name in wanted} == wanted, "the roles")


@asynccontextmanager
async def asked_all_along(client: httpx.AsyncClient) -> AsyncIterator[list[httpx.Response]]:
    """Four clients that ask without a pause; their answers."""
    answers: list[httpx.Response] = []
    done = False

    async def ask() -> None:
        while not done:
            answers.append(await client.post("/v1/chat/completions", json=QUESTION))

    tasks = [asyncio.create_task(ask()) for _ in range(4)]
    yield answers
    done = True
    await asyncio.gather(*tasks)


async def divided(client: httpx.AsyncClient, route: str, answers: list[httpx.Response]) -> None:
    """Return once some more requests were answered on this way."""
    before = len(answers)
    await until(lambda: sum(one.headers["x-baton-route"] == route for one in answers[before:]) >= 6, route)


async def test_workers_change_places_under_load(fleet: Fleet, processes: BatonProcesses) -> None:
    one, other = fleet.prefills[0].key, fleet.decodes[0].key
    words = ["--port", "0", "--bootstrap-addr", str(fleet.bootstrap.facts["grpc"]), "--decode-policy", "round_robin"]
    gateway = processes.baton("gateway", "gateway", *words).wait_announced()
    async with httpx.AsyncClient(base_url=gateway.url, timeout=90, trust_env=False) as client:
        await until(
            lambda: len(httpx.get(f"{gateway.url}/v1/baton/workers", trust_env=False).json()) == 3, "the workers"
        )
        async with asked_all_along(client) as answers:
            await divided(client, f"{one}>{other}", answers)
            await assign(fleet, {one: "decode", other: "prefill"})
            await divided(client, f"{other}>{one}", answers)
            await assign(fleet, {one: "", other: ""})
            await divided(client, f"{one}>{other}", answers)
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers}) == 1
        assert "baton_gateway_lost_legs_total{" not in (await client.get("/metrics")).text
    roles = {worker.key: worker.metrics() for worker in fleet.workers}
    assert all(found["baton_handoff_mismatched_pages_total"] == 0 for found in roles.values())
    await settled(*fleet.workers)
