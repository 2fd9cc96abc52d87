"""What a gateway's memory holds: idle connections, open streams, clients that read nothing, bodies of 64 MB.

    python benchmarks/gateway_memory.py

Prints, beside SGLang's router: resident memory for each idle connection and each open stream; for each client that
asked for a megabyte of events and reads none, with whether the first to read gets all of them; and how far a body of
64 MB raises the peak, in bodies, with the longest wait of small requests meanwhile. Opens as many idle connections as
files may be open, at most `--connections`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from gateway_peers import MODEL, chat_request
from gateway_targets import HOST, LOAD_CORE, Target, baton, serve_workers, sglang_router

BODY = 64_000_000  # bytes
SPARE_FILES = 1000  # for everything but idle connections
BURST = 4096  # events, about a megabyte


def allowed_files() -> int:
    """Files that this process, and those it starts, may have open, after asking for as many as there may be."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


@contextlib.contextmanager
def connected(target: Target, count: int, receive: int | None = None) -> Iterator[list[socket.socket]]:
    """Plain sockets; `receive` is the size of the kernel's buffer of each."""
    sockets = []
    try:
        for _ in range(count):
            one = socket.socket()
            if receive is not None:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
            one.connect((HOST, target.port))
            sockets.append(one)
        yield sockets
    finally:
        for one in sockets:
            one.close()


async def idle(target: Target, count: int) -> str:
    before = target.memory()
    with connected(target, count) as sockets:
        sockets[-1].sendall(chat_request(stream=False))
        await asyncio.to_thread(sockets[-1].recv, 65536)  # so it has taken all of them
        grown = target.memory() - before
        run = await target.measure(chat_request(stream=False), 1, 0.5)
        answers = f"{run.tally.requests} answered, {run.tally.failed} failed meanwhile"
    return f"{grown / count / 1024:.1f} KiB ({answers})"


async def streams(target: Target, count: int) -> str:
    request = chat_request(stream=True, events=1000, pace=0.05)
    before = target.memory()
    with connected(target, count) as sockets:
        for one in sockets:
            one.sendall(request)
        await asyncio.sleep(5.0)  # a hundred events each
        return f"{(target.memory() - before) / count / 1024:.1f} KiB"


async def slow_readers(target: Target, count: int) -> str:
    before = target.memory()
    with connected(target, count, receive=4096) as sockets:
        for one in sockets:
            one.sendall(chat_request(stream=True, events=BURST))
        await asyncio.sleep(3.0)
        each = (target.memory() - before) / count / 1024
        events = await asyncio.to_thread(_read_all, sockets[0])
    return f"{each:.0f} KiB; {events} of {BURST} events once read"


def _read_all(one: socket.socket) -> int:
    one.settimeout(20)
    events, tail = 0, b""
    while not tail.endswith(b"0\r\n\r\n"):
        data = one.recv(65536)
        if not data:
            break
        events += (tail + data).count(b"data: {") - tail.count(b"data: {")
        tail = (tail + data)[-6:]
    return events


async def large_body(target: Target) -> str:
    """One body of 64 MB through a gateway that also answers small requests."""
    text = b"word " * (BODY // 5 - 50)
    body = b'{"model": "%b", "messages": [{"role": "user", "content": "%b"}]}' % (MODEL.encode(), text)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    request = head + b"content-length: %d\r\n\r\n" % len(body) + body
    _reset_peaks(target)
    before = target.memory()
    longest = asyncio.create_task(_longest_wait(target, 4.0))
    await asyncio.sleep(0.5)
    reader, writer = await asyncio.open_connection(HOST, target.port)
    writer.write(request)
    status = (await reader.readline()).decode().strip()
    writer.close()
    waited = await longest
    grown = _peak(target) - before
    return f"{status}: peak {grown / len(body):.1f} bodies; a small request waited {waited * 1e3:.0f} ms at most"


async def _longest_wait(target: Target, seconds: float) -> float:
    reader, writer = await asyncio.open_connection(HOST, target.port)
    until, longest = time.perf_counter() + seconds, 0.0
    while (began := time.perf_counter()) < until:
        writer.write(chat_request(stream=False))
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r")[0]))
        longest = max(longest, time.perf_counter() - began)
        await asyncio.sleep(0.005)
    writer.close()
    return longest


def _reset_peaks(target: Target) -> None:
    for process in target.processes:
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def _peak(target: Target) -> int:
    """Bytes, of all its processes, since `_reset_peaks`."""
    told = [Path(f"/proc/{process.pid}/status").read_text() for process in target.processes]
    return sum(int(text.partition("VmHWM:")[2].split()[0]) * 1024 for text in told)


async def run(args: argparse.Namespace) -> None:
    console = Console()
    connections = min(args.connections, allowed_files() - SPARE_FILES)
    os.sched_setaffinity(0, {LOAD_CORE})
    console.print(f"load of the machine before: {os.getloadavg()[0]:.1f}, free memory {_free():.1f} GiB")
    workers, servers = await serve_workers()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gateways = {"baton": baton} if args.alone else {"baton": baton, "sglang-router": sglang_router}
        table = Table("", *gateways, title="Memory")
        rows = (
            (f"each of {connections:,} idle connections", lambda one: idle(one, connections)),
            ("each of 200 streams after 100 events", lambda one: streams(one, 200)),
            ("each of 100 clients that read nothing", lambda one: slow_readers(one, 100)),
            ("a body of 64 MB", large_body),
        )
        for title, measure in rows:
            cells = []
            for gateway in gateways.values():  # a new one each time: what another row left would serve the next
                async with gateway(workers, folder) as target:
                    cells.append(await measure(target))
            table.add_row(title, *cells)
        console.print(table)
    for server in servers:
        server.close()


def _free() -> float:
    return float(psutil.virtual_memory().available) / 2**30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=10_000, help="idle connections")
    parser.add_argument("--alone", action="store_true", help="leave SGLang's router out")
    args = parser.parse_args()
    uvloop.run(run(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
