"""Worker reports, from a real bootstrap server at which a real worker has registered."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from support.fake_cluster import service_of

from baton_bootstrap.client import RegistrationClient, assigned, report_waiting
from baton_bootstrap.records import Assignment, Beat, Goal, Load, Phase, Progress, Role, State, Worker
from baton_bootstrap.server import BootstrapServer, ServerConfig
from baton_operator.controller.reports import Listing, Reports
from baton_operator.planner import Context, Observed, WorkerReport
from baton_operator.planner.objects import Object, ref_of


class ClusterDns(AbstractResolver):
    """Names of bootstrap replicas lead to a port of this machine; any other name is unknown."""

    def __init__(self, ports: dict[str, int]) -> None:
        self.ports = ports
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        if host not in self.ports:
            raise OSError(f"no such name: {host}")
        here = {"hostname": host, "host": "127.0.0.1", "port": self.ports[host]}
        return [{**here, "family": socket.AF_INET, "proto": 0, "flags": 0}]  # type: ignore[typeddict-item]

    async def close(self) -> None:
        pass


def deployment(name: str, ready: int) -> Object:
    labels = {"app.kubernetes.io/component": "bootstrap"}
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "status": {"readyReplicas": ready}}


def observed(*items: Object) -> Observed:
    return Observed({ref_of(item): item for item in items})


CONTEXT = Context(service_of("{model: {uri: 'hf://a/b'}, bootstrap: {replicas: 2}}"))
FIRST, SECOND = (CONTEXT.host(name) for name in CONTEXT.bootstrap_names())


@pytest.fixture
async def server() -> AsyncIterator[BootstrapServer]:
    server = BootstrapServer(ServerConfig(port=0, http_port=0, lease=0.5))
    await server.start()
    yield server
    await server.stop()


async def warmed(server: BootstrapServer) -> None:
    while server.registry.warming:  # noqa: ASYNC110  (the registry goes by the clock and tells nobody)
        await asyncio.sleep(0.01)


async def ask(dns: ClusterDns, seen: Observed) -> Listing | None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=dns)) as session:
        return await Reports(session).of(CONTEXT, seen)


async def test_workers_are_reported_as_they_registered(server: BootstrapServer) -> None:
    worker = Worker(
        id="d-0", incarnation="1" * 32, epoch=1, role=Role.DECODE, http_url="http://a:1", weight_digest="w1"
    )
    load = Load(queued_tokens=7, prompt_tokens=30, prompt_seconds=1.5, answer_tokens=9, answer_seconds=2.0)
    turns = itertools.count()  # a scheduler whose turns stand still would be reported as stalled
    address = [f"127.0.0.1:{server.port}"]
    async with RegistrationClient(
        address, worker, lambda: Beat(state=State.READY, load=load, tick=next(turns), links={"p-0": 2e9})
    ) as registration:
        await registration.registered()
        dns = ClusterDns({FIRST: server.http_port})
        up = observed(deployment("chat-bootstrap-0", 1))
        assert await ask(dns, up) is None, "a server that was just started does not know everybody"
        await warmed(server)
        await report_waiting(address, "g-0", 3)
        await report_waiting(address, "g-1", 1)
        found = await ask(dns, up)
    report = WorkerReport(
        "d-0",
        "decode",
        "ready",
        "w1",
        "http://a:1",
        "1" * 32,
        queued_tokens=7,
        prompt_tokens=30,
        prompt_seconds=1.5,
        answer_tokens=9,
        answer_seconds=2.0,
        links={"p-0": 2e9},
    )
    assert found == Listing([report], waiting=4)


async def test_a_pod_that_fetches_its_model_is_no_worker_yet(server: BootstrapServer) -> None:
    worker = Worker(id="d-0", incarnation="1" * 32, epoch=1, role=Role.BOTH, http_url="http://a:1")
    beat = Beat(state=State.STARTING, progress=Progress(phase=Phase.STAGING, done=1, total=4))
    async with RegistrationClient([f"127.0.0.1:{server.port}"], worker, lambda: beat) as registration:
        await registration.registered()
        await warmed(server)
        found = await ask(ClusterDns({FIRST: server.http_port}), observed(deployment("chat-bootstrap-0", 1)))
    assert found is not None
    assert found.workers == []
    assert [(one.id, one.done, one.total) for one in found.fetching] == [("d-0", 1, 4)]


async def test_the_next_replica_is_asked_when_one_does_not_answer(server: BootstrapServer) -> None:
    await warmed(server)
    dns = ClusterDns({SECOND: server.http_port})
    both = observed(deployment("chat-bootstrap-0", 1), deployment("chat-bootstrap-1", 1))
    assert await ask(dns, both) == Listing([])
    assert dns.asked == [FIRST, SECOND]


async def test_a_replica_that_is_not_up_is_not_asked() -> None:
    dns = ClusterDns({})
    assert await ask(dns, observed(deployment("chat-bootstrap-0", 0))) is None
    assert dns.asked == []


async def test_a_token_is_shown_where_one_is_asked_for() -> None:
    server = BootstrapServer(ServerConfig(port=0, http_port=0, lease=0.1, token="s3cret"))
    await server.start()
    try:
        await warmed(server)
        dns, up = ClusterDns({FIRST: server.http_port}), observed(deployment("chat-bootstrap-0", 1))
        assert await ask(dns, up) is None
        assert await ask(dns, replace(up, token="s3cret")) == Listing([])
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=dns)) as session:
            order = {"d-0": {"revision": "r2", "model": "/models/b"}}
            await Reports(session).assign(CONTEXT, up, order)
            assert server.registry.assignment("d-0") is None
            await Reports(session).assign(CONTEXT, replace(up, token="s3cret"), order)
            assert server.registry.assignment("d-0") is not None
    finally:
        await server.stop()


async def test_workers_hear_at_once_what_they_are_to_serve(server: BootstrapServer) -> None:
    """Not with their next heartbeat, which is a minute away here."""
    worker = Worker(id="d-0", incarnation="1" * 32, epoch=1, role=Role.DECODE, http_url="http://a:1")
    heard: asyncio.Queue[Assignment] = asyncio.Queue()
    server.registry.lease = 240.0
    async with RegistrationClient(
        [f"127.0.0.1:{server.port}"], worker, lambda: Beat(state=State.READY), on_assignment=heard.put_nowait
    ) as registration:
        await registration.registered()
        dns = ClusterDns({FIRST: server.http_port})
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=dns)) as session:
            order = {"revision": "r2", "model": "/models/b", "goal": "switch"}
            await Reports(session).assign(CONTEXT, observed(deployment("chat-bootstrap-0", 1)), {"d-0": order})
        wanted = Assignment(revision="r2", model="/models/b", goal=Goal.SWITCH)
        assert await asyncio.wait_for(heard.get(), 10) == wanted
    assert await assigned(f"127.0.0.1:{server.port}", ["d-0", "d"]) == wanted
    assert await assigned(f"127.0.0.1:{server.port}", ["d-1", "d-0"]) == wanted, "its group's"
    assert await assigned(f"127.0.0.1:{server.port}", ["d-1"]) is None
