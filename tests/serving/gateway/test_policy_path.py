"""Policies and admission at work on the gateway's data path, before scripted workers."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import aiohttp
import pytest
from support.gateway_bench import Bench, Call, ScriptedWorker, answer, events, gateway_bench, hang, prefill_ok, stream

from baton_bootstrap.client import RegistrationClient, View
from baton_bootstrap.records import Beat, Entry, Role, State, Status
from baton_bootstrap.server import BootstrapServer, ServerConfig
from baton_serving.gateway.admission.door import Door, DoorConfig
from baton_serving.gateway.admission.ledger import Limits
from baton_serving.gateway.policies.prefix_keys import prefix_keys, seed_of
from baton_serving.gateway.routing import RoutingConfig
from baton_serving.runtime.cache_frames import read_names

PROMPT = "Once upon a time there was a gateway. " * 60


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while True:
            if true():
                return
            await asyncio.sleep(0.01)


async def served_by(bench: Bench, prompt: str) -> tuple[str, str]:
    """The workers of one request, and its id."""
    async with bench.post(prompt=prompt, stream=True) as response:
        assert response.status == 200
        await response.read()
        return response.headers["x-baton-route"], response.headers["x-request-id"]


async def test_prompts_that_begin_alike_meet_the_worker_that_has_their_beginning() -> None:
    async with gateway_bench(RoutingConfig(policy="cache_aware", decode_policy="round_robin")) as bench:
        prefills = [await bench.worker(f"p{n}", prefill_ok) for n in range(4)]
        decodes = [await bench.worker(f"d{n}", stream("a")) for n in range(2)]
        first, _ = await served_by(bench, PROMPT)
        routes = [await served_by(bench, PROMPT + "And then? " * 20 * n) for n in range(1, 6)]
        assert {route.partition(">")[0] for route, _ in routes} == {first.partition(">")[0]}
        assert len({route.partition(">")[2] for route, _ in routes}) == 2
        async with bench.session.get(f"{bench.url}/v1/baton/explain/{routes[-1][1]}") as response:
            told = (await response.json())["attempts"][0]["prefill"]
        assert set(told["scores"]) == {"p0", "p1", "p2", "p3"}
        assert min(told["scores"], key=told["scores"].__getitem__) == told["worker"]
        assert told["believed_cached_tokens"] > 400
        call = next(worker.calls[-1] for worker in prefills if worker.calls)
        legs = [call, next(one for worker in decodes for one in worker.calls if one.body == call.body)]
        for leg in legs:
            raw = str(leg.body["prompt"])
            keys = prefix_keys(b'"' + raw.encode() + b'"', seed_of("m", "w1"))
            assert [key for key, _ in read_names(leg.headers["x-baton-prefix-keys"])] == keys


async def test_other_weights_begin_with_an_empty_index() -> None:
    async with gateway_bench(RoutingConfig(policy="cache_aware")) as bench:
        await bench.worker("b0", stream("a"), weights="old")
        _, request = await served_by(bench, PROMPT)
        await bench.worker("b1", stream("a"), weights="new")
        old, new = bench.workers
        bench.show(new)
        route, request = await served_by(bench, PROMPT)
        assert route == "b1"
        async with bench.session.get(f"{bench.url}/v1/baton/explain/{request}") as response:
            assert (await response.json())["attempts"][0]["decode"]["believed_cached_tokens"] == 0
        assert old.calls


async def test_a_client_cannot_name_keys() -> None:
    async with gateway_bench(RoutingConfig(policy="cache_aware")) as bench:
        worker = await bench.worker("b0", answer(text="ok"))
        body = {"model": "m", "prompt": "short"}
        headers = {"x-baton-prefix-keys": "00" * 10}
        async with bench.session.post(f"{bench.url}/v1/completions", json=body, headers=headers) as response:
            assert response.status == 200
        assert "x-baton-prefix-keys" not in worker.calls[0].headers


async def test_requests_wait_for_their_turn_and_a_full_queue_refuses_with_retry_after() -> None:
    door = Door(DoorConfig(max_running=1, max_queued=1, queue_seconds=30.0))
    release = asyncio.Event()

    async def held(call: Call) -> None:
        await call.head()
        await call.chunk(events("a")[0])
        await release.wait()
        await call.chunk(events("b")[1])
        await call.end()

    async with gateway_bench(RoutingConfig(), admission=door) as bench:
        worker = await bench.worker("b0", held)
        one = asyncio.create_task(served_by(bench, "one"))
        await worker.called()
        two = asyncio.create_task(served_by(bench, "two"))
        await until(lambda: door.waiting == 1)
        async with bench.post(prompt="three") as response:
            assert response.status == 429
            assert int(response.headers["retry-after"]) >= 1
            assert (await response.json())["error"]["code"] == "queue_full"
        assert len(worker.calls) == 1
        release.set()
        await asyncio.gather(one, two)
        assert (door.running, door.waiting) == (0, 0)


async def test_a_request_that_waited_too_long_is_refused_with_503() -> None:
    door = Door(DoorConfig(max_running=1, queue_seconds=0.1))
    async with gateway_bench(RoutingConfig(), admission=door) as bench:
        worker = await bench.worker("b0", hang)
        one = asyncio.create_task(served_by(bench, "one"))
        await worker.called()
        async with bench.post(prompt="two") as response:
            assert response.status == 503
            assert "retry-after" in response.headers
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        await until(lambda: door.running == 0)


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
async def test_a_keys_rate_counts_the_tokens_of_answers(streamed: bool) -> None:
    door = Door(DoorConfig(limits=Limits(tokens_per_minute=1000)))

    async def told(call: Call) -> None:
        if not streamed:
            await call.reply(usage={"prompt_tokens": 20, "completion_tokens": 880}, choices=[])
            return
        await call.head()
        ids = ",".join(["7"] * 880)
        await call.chunk(f'id: [0,0,{ids}]\ndata: {{"choices":[]}}\n\n'.encode())
        await call.chunk(b"data: [DONE]\n\n")
        await call.end()

    async with gateway_bench(RoutingConfig(), admission=door) as bench:
        await bench.worker("b0", told)
        async with bench.post(prompt="x" * 80, stream=streamed, max_tokens=10) as response:
            assert response.status == 200
            await response.read()
        async with bench.post(prompt="x" * 80, max_tokens=400) as response:
            assert response.status == 429
            assert 5 <= int(response.headers["retry-after"]) <= 30


async def test_an_index_forgets_workers_that_are_gone() -> None:
    async with gateway_bench(RoutingConfig(policy="cache_aware")) as bench:
        await bench.worker("b0", stream("a"))
        await served_by(bench, PROMPT)
        index = bench.core.router.memory.index  # type: ignore[attr-defined]
        keys = prefix_keys(b'"' + PROMPT.encode() + b'"', seed_of("m", "w1"))
        old = bench.workers[0].entry
        slot = index.slot((old.worker.id, old.worker.incarnation))
        assert index.match(keys)[0][1] >> slot & 1
        restarted = await bench.worker("b1", stream("a"))
        entry = Entry(worker=restarted.entry.worker, status=Status(state=State.READY))
        bench.core._give_up(bench.core.router.fleet.endpoints[old.worker.id, old.worker.incarnation])
        bench.core.update(View(version=99, connected=1, entries={"b1": entry}))
        await until(lambda: not any(mask >> slot & 1 for _, mask in index.match(keys)))


async def test_processes_on_one_port_share_a_keys_limit(tmp_path: Path) -> None:
    """However the kernel spreads the connections: three requests of the key go on, nine are refused."""
    bootstrap = BootstrapServer(ServerConfig())
    await bootstrap.start()
    worker = ScriptedWorker("b0", Role.BOTH, hang)
    await worker.start()
    ticks = count()
    address = f"127.0.0.1:{bootstrap.port}"
    client = RegistrationClient(address, worker.entry.worker, lambda: Beat(state=State.READY, tick=next(ticks)))
    await client.start()
    await client.registered()
    keys = tmp_path / "keys"
    keys.write_text("alice sk-1 requests=3\n")
    words = ("gateway", "--port", "0", "--bootstrap-addr", address, "--processes", "2", "--worker-wait", "20")
    gateway = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "baton_serving.cli.main", *words, "--api-keys", str(keys), "--grace", "0.1"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert gateway.stdout is not None
    url = json.loads(await gateway.stdout.readline())["http"]

    key = {"authorization": "Bearer sk-1"}

    async def status() -> int:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/v1/completions", json={"model": "m"}, headers=key) as got,
        ):
            return got.status

    try:
        asked = [asyncio.create_task(status()) for _ in range(12)]
        async with asyncio.timeout(60):
            await until(lambda: sum(one.done() for one in asked) == 9)
            assert [one.result() for one in asked if one.done()] == [429] * 9
            await worker.called(3)
    finally:
        gateway.terminate()
        await gateway.wait()
        await asyncio.gather(*asked, return_exceptions=True)
        await client.aclose()
        await worker.stop()
        await bootstrap.stop()
