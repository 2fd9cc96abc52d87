"""What a rollout asks gateways, of a real one whose clients need keys."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from itertools import count
from pathlib import Path

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from support.fake_cluster import service_of
from support.gateway_bench import ScriptedWorker, hang

from baton_bootstrap.client import RegistrationClient
from baton_bootstrap.records import Beat, Role, State
from baton_bootstrap.server import BootstrapServer, ServerConfig
from baton_operator.api.status import RolloutStatus, Status
from baton_operator.controller.rollouts import Rollouts
from baton_operator.planner import Context, Observed
from baton_serving.gateway.server import GatewayConfig, GatewayProcess, bind

KEY = ("prod", "chat")
POD = {
    "metadata": {"name": "g", "labels": {"app.kubernetes.io/component": "gateway"}},
    "status": {"podIP": "gateway-pod", "conditions": [{"type": "Ready", "status": "True"}]},
}


class PodNetwork(AbstractResolver):
    """A pod's ports are others of this machine."""

    def __init__(self, ports: dict[int, int]) -> None:
        self._ports = ports

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if port not in self._ports:
            raise OSError(f"nobody listens at port {port}")
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=self._ports[port], family=socket.AF_INET, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        pass


def changing(spec: str) -> Context:
    """A service in the middle of a change."""
    service = service_of(spec)
    status = Status(rollout=RolloutStatus(phase="Moving", version="new"))
    return Context(replace(service, manifest=service.manifest.model_copy(update={"status": status})))


async def test_the_operator_hears_from_gateways_whose_clients_need_keys(tmp_path: Path) -> None:
    (tmp_path / "alice").write_text("sk-1")
    bootstrap, worker = BootstrapServer(ServerConfig()), ScriptedWorker("b", Role.BOTH, hang)
    await bootstrap.start()
    await worker.start()
    address, ticks = f"127.0.0.1:{bootstrap.port}", count()
    gateway = GatewayProcess(GatewayConfig((address,), api_keys=tmp_path))
    clients, probes = bind("127.0.0.1", 0), bind("127.0.0.1", 0)
    await gateway.start(clients, probes)
    network = PodNetwork({8000: clients.getsockname()[1], 8001: probes.getsockname()[1]})
    async with (
        RegistrationClient(address, worker.entry.worker, lambda: Beat(state=State.READY, tick=next(ticks))),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=network)) as session,
    ):
        rollouts, seen = Rollouts(session), Observed(pods=[POD])
        with_keys = changing("{model: {uri: 'hf://a/b'}, gateway: {apiKeys: {secret: clients}}}")
        async with asyncio.timeout(20):
            while True:
                heard = await rollouts.look(KEY, with_keys, seen)
                if any(heard.gateways):
                    break
                await asyncio.sleep(0.05)
        assert heard.gateways == [frozenset({"b"})]
        without = await rollouts.look(KEY, changing("{model: {uri: 'hf://a/b'}}"), seen)
        assert without.gateways == [], "the port of clients asks for a key"
    await gateway.stop()
    await worker.stop()
    await bootstrap.stop()
