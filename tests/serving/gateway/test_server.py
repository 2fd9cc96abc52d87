"""The gateway as a process, with a real bootstrap server and workers registered at it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import aiohttp
import pytest
from support.gateway_bench import ScriptedWorker, events, hang, prefill_ok, stream

from baton_bootstrap.client import RegistrationClient
from baton_bootstrap.records import Beat, Role, State
from baton_bootstrap.server import BootstrapServer, ServerConfig


async def start_gateway(*options: str) -> tuple[asyncio.subprocess.Process, dict[str, str]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "baton_serving.cli.main", "gateway", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    return process, json.loads(await process.stdout.readline() or b"{}")


async def exit_status(process: asyncio.subprocess.Process) -> int | None:
    """Wait for the process and for the end of what it wrote."""
    await process.communicate()
    return process.returncode


def ready() -> Callable[[], Beat]:
    """The heartbeats of a worker whose scheduler turns."""
    ticks = count()
    return lambda: Beat(state=State.READY, tick=next(ticks))


async def held(bootstrap: BootstrapServer, requests: int) -> None:
    """Return once the bootstrap server knows of so many requests that wait for a worker."""
    while True:
        if bootstrap.registry.waiting == requests:
            return
        await asyncio.sleep(0.05)


async def test_it_finds_workers_and_outlives_the_bootstrap_server(tmp_path: Path) -> None:
    bootstrap = BootstrapServer(ServerConfig())
    await bootstrap.start()
    workers = [ScriptedWorker("p", Role.PREFILL, prefill_ok), ScriptedWorker("d", Role.DECODE, stream("a"))]
    address = f"127.0.0.1:{bootstrap.port}"
    announced = tmp_path / "gateway.json"
    options = ("--port", "0", "--bootstrap-addr", address, "--worker-wait", "20")
    gateway, facts = await start_gateway(*options, "--announce-file", str(announced))
    assert facts == json.loads(announced.read_text())
    clients = []
    async with aiohttp.ClientSession() as session:
        early = asyncio.ensure_future(session.post(f"{facts['http']}/v1/completions", json={"model": "m"}))
        await held(bootstrap, 1)
        for worker in reversed(workers):  # the decode worker alone serves what waits
            await worker.start()
            clients.append(RegistrationClient(address, worker.entry.worker, ready()))
            await clients[-1].start()
            await clients[-1].registered()
        assert await (await early).read() == b"".join(events("a"))
        await held(bootstrap, 0)
        async with session.post(f"{facts['http']}/v1/completions", json={"model": "m"}) as response:
            assert response.headers["x-baton-route"] == "p>d"
        await bootstrap.stop()
        async with session.post(f"{facts['http']}/v1/completions", json={"model": "m"}) as response:
            assert await response.read() == b"".join(events("a"))
    for client in clients:
        await client.aclose()
    gateway.send_signal(signal.SIGTERM)
    assert await exit_status(gateway) == 0
    for worker in workers:
        await worker.stop()


async def test_told_to_stop_it_lets_open_streams_end() -> None:
    bootstrap = BootstrapServer(ServerConfig())
    await bootstrap.start()
    worker = ScriptedWorker("b", Role.BOTH, hang)
    await worker.start()
    address = f"127.0.0.1:{bootstrap.port}"
    gateway, facts = await start_gateway("--port", "0", "--bootstrap-addr", address, "--worker-wait", "20")
    async with RegistrationClient(address, worker.entry.worker, ready()), aiohttp.ClientSession() as session:
        asking = asyncio.ensure_future(session.post(f"{facts['http']}/generate", json={}))
        call = await worker.called()
        gateway.send_signal(signal.SIGTERM)
        while True:
            try:
                await session.get(f"{facts['http']}/health")
            except aiohttp.ClientConnectionError:
                break
        await call.head()
        for event in events("late"):
            await call.chunk(event)
        await call.end()
        assert await (await asking).read() == b"".join(events("late"))
    assert await exit_status(gateway) == 0
    await worker.stop()
    await bootstrap.stop()


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_the_port_for_probes_asks_for_no_key_and_takes_no_requests(tmp_path: Path, processes: str) -> None:
    bootstrap = BootstrapServer(ServerConfig())
    await bootstrap.start()
    worker = ScriptedWorker("b", Role.BOTH, stream("a"))
    await worker.start()
    (tmp_path / "alice").write_text("sk-1")
    address = f"127.0.0.1:{bootstrap.port}"
    options = ("--port", "0", "--bootstrap-addr", address, "--worker-wait", "20", "--api-keys", str(tmp_path))
    gateway, facts = await start_gateway(*options, "--probe-port", "0", "--processes", processes)
    client = RegistrationClient(address, worker.entry.worker, ready())
    async with client, aiohttp.ClientSession() as session:

        async def status(place: str, route: str, **headers: str) -> int:
            async with session.get(facts[place] + route, headers=headers) as response:
                return response.status

        async with session.post(
            f"{facts['http']}/v1/completions", json={"model": "m"}, headers={"authorization": "Bearer sk-1"}
        ) as response:
            assert response.status == 200
            name = response.headers["x-request-id"]
        figures = ["/metrics", "/v1/baton/workers", "/v1/baton/versions"]
        answers = ["/v1/models", f"/v1/baton/explain/{name}"]
        assert [await status("http", route) for route in (*figures, *answers)] == [401] * 5
        assert [await status("http", route, authorization="Bearer sk-1") for route in (*figures, *answers)] == [200] * 5
        assert [await status("probes", route) for route in (*figures, "/health")] == [200] * 4
        assert [await status("probes", route) for route in answers] == [404] * 2
        async with session.post(f"{facts['probes']}/v1/completions", json={"model": "m"}) as response:
            assert response.status == 404
    gateway.send_signal(signal.SIGTERM)
    assert await exit_status(gateway) == 0
    await worker.stop()
    await bootstrap.stop()


async def test_wrong_options_are_one_line_and_exit_status_2() -> None:
    for options in (
        ["--bootstrap-addr", "nowhere"],
        ["--policy", "best"],
        ["--attempts", "0"],
        ["--worker-wait", "-1"],
        ["--host", "203.0.113.1", "--port", "0"],
    ):
        gateway, facts = await start_gateway(*options)
        _, stderr = await gateway.communicate()
        assert (gateway.returncode, facts) == (2, {}), stderr
        assert len(stderr.strip().splitlines()) == 1


async def test_processes_share_a_port_and_answer_for_each_other(tmp_path: Path) -> None:
    bootstrap = BootstrapServer(ServerConfig())
    await bootstrap.start()
    worker = ScriptedWorker("b", Role.BOTH, stream("a"))
    await worker.start()
    address, log = f"127.0.0.1:{bootstrap.port}", tmp_path / "access.log"
    options = ("--port", "0", "--bootstrap-addr", address, "--worker-wait", "20", "--processes", "2")
    gateway, facts = await start_gateway(*options, "--access-log", str(log))
    ids = [f"request-{number}" for number in range(24)]
    async with RegistrationClient(address, worker.entry.worker, ready()):
        for one in ids:  # each on a connection of its own: the kernel spreads them
            async with (
                aiohttp.ClientSession(headers={"x-request-id": one}) as session,
                session.post(f"{facts['http']}/v1/completions", json={"model": "m"}) as response,
            ):
                assert await response.read() == b"".join(events("a"))
        async with aiohttp.ClientSession() as session:
            for one in ids:
                async with session.get(f"{facts['http']}/v1/baton/explain/{one}") as response:
                    assert (await response.json())["outcome"] == "done"
            async with session.get(f"{facts['http']}/metrics") as response:
                text = await response.text()
    assert 'baton_gateway_requests_total{outcome="done",path="/v1/completions"} 24.0' in text
    assert 'baton_gateway_workers{role="both",state="ready"} 1.0' in text
    gateway.send_signal(signal.SIGTERM)
    assert await exit_status(gateway) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert sorted(line["request_id"] for line in lines) == sorted(ids)
    await worker.stop()
    await bootstrap.stop()
