"""Baton's gateway beside SGLang's router, in front of the same scripted workers: rate, CPU, first token, memory.

    python benchmarks/gateway_speed.py

Two prefill and two decode workers that answer at once, and clients, share one core; the gateway has another. Baton runs
with policy, admission, metrics and trace headers on, SGLang's router in prefill/decode mode (`pip install
sglang-router==0.3.2`). CPU is the gateway's own, from the kernel's accounts. `direct` is what clients and workers reach
without anything between: a floor of the time and a ceiling of the rate. Needs two cores to mean anything.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from baton_bootstrap.client import RegistrationClient
from baton_bootstrap.records import Beat, Role, State, Worker
from baton_bootstrap.server import BootstrapServer, ServerConfig
from baton_serving.gateway.server import bind
from gateway_peers import MODEL, PrefillConnection, Tally, WorkerConnection, chat_request, load

HOST = "127.0.0.1"
GATEWAY_CORE, LOAD_CORE = 0, 1
START_SECONDS = 60.0
WARM_SECONDS = 1.0


@dataclass
class Measured:
    """One run against one gateway. CPU in seconds, over all of its processes."""

    tally: Tally
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        return self.tally.requests / self.seconds

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

    async def measure(self, request: bytes, concurrency: int, seconds: float) -> Measured:
        await load(HOST, self.port, request, concurrency, WARM_SECONDS)
        before, started = self.cpu(), time.perf_counter()
        tally = await load(HOST, self.port, request, concurrency, seconds)
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
async def baton(workers: list[tuple[Role, int]], folder: Path, processes: int = 1) -> AsyncIterator[Target]:
    """Baton's gateway and a bootstrap server at which the workers are registered; several processes share all cores."""
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
    words = [sys.executable, "-m", "baton_serving.cli.main", "gateway", "--port", str(port)]
    words += ["--bootstrap-addr", address, "--worker-wait", "10", "--processes", str(processes)]
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


async def rates(targets: list[Target], args: argparse.Namespace, console: Console) -> None:
    table = Table(
        "concurrency", *(f"{one.name} {what}" for one in targets for what in ("req/s", "µs CPU/req")), "ratios"
    )
    for concurrency in args.concurrency:
        runs = [await one.measure(chat_request(stream=False), concurrency, args.seconds) for one in targets]
        cells = [text for run in runs for text in (f"{run.rate:,.0f}", f"{run.cpu_per_request:.1f}")]
        table.add_row(str(concurrency), *cells, _ratios(runs))
        _warn(runs, console)
    console.print("Whole answers", table)


def _ratios(runs: list[Measured]) -> str:
    if len(runs) < 2 or not runs[0].tally.requests:
        return ""
    ours, theirs = runs[0], runs[1]
    return f"{ours.rate / theirs.rate:.2f}× rate, {ours.cpu_per_request / theirs.cpu_per_request:.2f}× CPU"


def _warn(runs: list[Measured], console: Console) -> None:
    for run in runs:
        if run.tally.failed:
            console.print(f"[red]{run.tally.failed} of {run.tally.requests} failed")


async def streams(targets: list[Target], args: argparse.Namespace, console: Console) -> None:
    table = Table("stream", "gateway", "events/s", "µs CPU/event", "first p50", "first p99", title_justify="left")
    cases = (
        ("burst of 128 events, 16 at once", chat_request(stream=True, events=128), 16),
        ("50 events, 20 ms apart, 64 at once", chat_request(stream=True, events=50, pace=0.02), 64),
    )
    for name, request, concurrency in cases:
        for one in targets:
            run = await one.measure(request, concurrency, max(args.seconds, 3.0))
            first = sorted(run.tally.first)
            at = [first[min(len(first) - 1, int(len(first) * share))] * 1e3 for share in (0.5, 0.99)]
            rate, cpu = f"{run.tally.events / run.seconds:,.0f}", f"{run.cpu_per_event:.1f}"
            table.add_row(name, one.name, rate, cpu, f"{at[0]:.2f} ms", f"{at[1]:.2f} ms")
            _warn([run], console)
    console.print("Streams", table)


async def memory(targets: list[Target], args: argparse.Namespace, console: Console) -> None:
    table = Table("gateway", "KiB per idle connection", "KiB per open stream")
    for one in targets:
        if one.name == "direct":
            continue
        before = one.memory()
        open_ones = [await asyncio.open_connection(HOST, one.port) for _ in range(args.connections)]
        await asyncio.sleep(0.5)
        idle = (one.memory() - before) / args.connections / 1024
        for _, writer in open_ones:
            writer.close()
        request = chat_request(stream=True, events=1000, pace=0.05)
        await asyncio.sleep(0.5)
        before = one.memory()
        streams_ = [await asyncio.open_connection(HOST, one.port) for _ in range(200)]
        for _, writer in streams_:
            writer.write(request)
        await asyncio.sleep(5)
        each = (one.memory() - before) / len(streams_) / 1024
        for _, writer in streams_:
            writer.transport.abort()
        table.add_row(one.name, f"{idle:.1f}", f"{each:.1f}")
    console.print(f"Memory: {args.connections} idle connections; 200 streams after 100 events each", table)


async def scaling(workers: list[tuple[Role, int]], folder: Path, args: argparse.Namespace, console: Console) -> None:
    """Two processes share both cores with workers and clients: CPU per request says more than the rate here."""
    table = Table("processes", "req/s", "µs CPU/req")
    for processes in (1, 2):
        async with baton(workers, folder, processes) as target:
            run = await target.measure(chat_request(stream=False), 128, args.seconds)
            table.add_row(str(processes), f"{run.rate:,.0f}", f"{run.cpu_per_request:.1f}")
    console.print("Two processes", table)


async def run(args: argparse.Namespace) -> None:
    console = Console()
    os.sched_setaffinity(0, {LOAD_CORE})
    console.print(f"load of the machine before: {os.getloadavg()[0]:.1f}")
    workers, servers = await serve_workers()
    decode = next(port for role, port in workers if role is Role.DECODE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with contextlib.AsyncExitStack() as stack:
            targets = [await stack.enter_async_context(baton(workers, folder))]
            if not args.alone:
                targets.append(await stack.enter_async_context(sglang_router(workers, folder)))
            direct = Target("direct", decode, [])
            await rates([*targets, direct], args, console)
            await streams([*targets, direct], args, console)
            await memory(targets, args, console)
        if args.scaling:
            await scaling(workers, folder, args, console)
    for server in servers:
        server.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run, after a second of warming up")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--connections", type=int, default=2000, help="idle connections for the memory figure")
    parser.add_argument("--alone", action="store_true", help="leave SGLang's router out")
    parser.add_argument("--scaling", action="store_true", help="also compare one process with two")
    args = parser.parse_args()
    uvloop.run(run(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
