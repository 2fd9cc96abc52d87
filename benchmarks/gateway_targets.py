"""What is measured in the gateway's benchmarks: Baton's gateway, SGLang's router, and a worker without either.

Clients and scripted workers run in the process of the benchmark, on a core of their own; the gateway has the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil

from baton_bootstrap.client import RegistrationClient
from baton_bootstrap.records import Beat, Role, State, Worker
from baton_bootstrap.server import BootstrapServer, ServerConfig
from baton_serving.gateway.server import bind
from gateway_peers import MODEL, PrefillConnection, Tally, WorkerConnection, load

HOST = "127.0.0.1"
GATEWAY_CORE, LOAD_CORE = 0, 1
START_SECONDS = 60.0
WARM_SECONDS = 0.5


@dataclass
class Measured:
    """One run against one gateway. CPU in seconds, over all of its processes."""

    tally: Tally
    seconds: float
    cpu: float

    def __add__(self, other: Measured) -> Measured:
        both = Tally(
            self.tally.requests + other.tally.requests,
            self.tally.failed + other.tally.failed,
            self.tally.events + other.tally.events,
            self.tally.first + other.tally.first,
        )
        return Measured(both, self.seconds + other.seconds, self.cpu + other.cpu)

    @property
    def rate(self) -> float:
        return self.tally.requests / self.seconds

    @property
    def busy(self) -> float:
        """Share of a core."""
        return self.cpu / self.seconds

    @property
    def cpu_per_request(self) -> float:
        """In microseconds."""
        return self.cpu / max(1, self.tally.requests) * 1e6

    @property
    def cpu_per_event(self) -> float:
        """In microseconds."""
        return self.cpu / max(1, self.tally.events) * 1e6


@dataclass
class Target:
    """Something that takes requests; `processes` are those whose CPU and memory count."""

    name: str
    port: int
    processes: list[psutil.Process]

    async def measure(self, request: bytes, concurrency: int, seconds: float, spread: float = 0.0) -> Measured:
        """Load it for `seconds`, after a while of warming up; see `load`."""
        await load(HOST, self.port, request, concurrency, WARM_SECONDS)
        before, started = self.cpu(), time.perf_counter()
        tally = await load(HOST, self.port, request, concurrency, seconds, spread)
        return Measured(tally, time.perf_counter() - started, self.cpu() - before)

    def cpu(self) -> float:
        times = [process.cpu_times() for process in self.processes]
        return float(sum(one.user + one.system for one in times))

    def memory(self) -> int:
        return sum(int(process.memory_info().rss) for process in self.processes)


async def serve_workers() -> tuple[list[tuple[Role, int]], list[asyncio.Server]]:
    loop = asyncio.get_running_loop()
    found: list[tuple[Role, int]] = []
    servers = []
    for role, protocol in ((Role.PREFILL, PrefillConnection), (Role.DECODE, WorkerConnection)):
        for _ in range(2):
            server = await loop.create_server(protocol, HOST, 0, backlog=1024)
            servers.append(server)
            found.append((role, server.sockets[0].getsockname()[1]))
    return found, servers


@contextlib.contextmanager
def running(words: list[str], core: int | None, log: Path) -> Iterator[psutil.Process]:
    """A command on one core, killed at the end."""
    pin = ["taskset", "-c", str(core)] if core is not None else []
    with log.open("w") as out:
        popen = subprocess.Popen([*pin, *words], stdout=out, stderr=out, env=os.environ)
    try:
        yield psutil.Process(popen.pid)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(popen.pid).children(recursive=True):
                child.kill()
        popen.kill()
        popen.wait()


async def answers(port: int, log: Path) -> None:
    """Wait until a chat request is answered through this port. Raises TimeoutError."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    try:
        async with asyncio.timeout(START_SECONDS), aiohttp.ClientSession() as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.post(f"http://{HOST}:{port}/v1/chat/completions", json=body) as response:
                        if response.status == 200:
                            return
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise TimeoutError(f"nothing answers on port {port}: see {log}") from None


def free_port() -> int:
    with bind(HOST, 0) as probe:
        return int(probe.getsockname()[1])


def everyone(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


@contextlib.asynccontextmanager
async def baton(
    workers: list[tuple[Role, int]], folder: Path, processes: int = 1, python: str = sys.executable
) -> AsyncIterator[Target]:
    """Baton's gateway, run by `python`, and a bootstrap server at which the workers are registered.

    Several processes share all cores.
    """
    bootstrap = BootstrapServer(ServerConfig())
    await bootstrap.start()
    address = f"{HOST}:{bootstrap.port}"
    ticks = itertools.count()
    clients = [
        RegistrationClient(
            address,
            Worker(
                id=f"{role}-{port}",
                incarnation=str(port),
                epoch=port,
                role=role,
                http_url=f"http://{HOST}:{port}",
                model=MODEL,
                weight_digest="w",
            ),
            lambda: Beat(state=State.READY, tick=next(ticks)),
        )
        for role, port in workers
    ]
    for client in clients:
        await client.start()
    port, log = free_port(), folder / f"baton{processes}.log"
    words = [python, "-m", "baton_serving.cli.main", "gateway", "--port", str(port)]
    words += ["--bootstrap-addr", address, "--worker-wait", "10", "--processes", str(processes)]
    words += ["--max-running-requests", "10000", "--key-requests", "10000"]  # never met, but counted
    with running(words, GATEWAY_CORE if processes == 1 else None, log) as process:
        await answers(port, log)
        yield Target("baton", port, everyone(process))
    for client in clients:
        await client.aclose()
    await bootstrap.stop()


@contextlib.asynccontextmanager
async def sglang_router(workers: list[tuple[Role, int]], folder: Path) -> AsyncIterator[Target]:
    port, log = free_port(), folder / "router.log"
    words = [sys.executable, "-m", "sglang_router.launch_router", "--pd-disaggregation", "--policy", "power_of_two"]
    for role, worker in workers:
        words += [f"--{role}", f"http://{HOST}:{worker}", *(["8998"] if role is Role.PREFILL else [])]
    words += ["--host", HOST, "--port", str(port), "--prometheus-host", HOST, "--prometheus-port", str(free_port())]
    words += ["--log-level", "error"]
    with running(words, GATEWAY_CORE, log) as process:
        await answers(port, log)
        yield Target("sglang-router", port, everyone(process))
