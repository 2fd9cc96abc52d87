"""Scripted workers on real sockets, and a gateway in front of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from baton_bootstrap.client import View
from baton_bootstrap.records import Entry, Role, State, Status, Worker
from baton_serving.gateway.admin import admin_app
from baton_serving.gateway.admission import Admission
from baton_serving.gateway.app import App
from baton_serving.gateway.core import LOOK_EVERY, Core, Patience
from baton_serving.gateway.history import History
from baton_serving.gateway.http.bodies import Bodies
from baton_serving.gateway.http.downstream import ClientConnection
from baton_serving.gateway.routing import Router, RoutingConfig
from baton_serving.gateway.siblings import Siblings

Script = Callable[["Call"], Awaitable[None]]


@dataclass
class Call:
    """One request that a worker got, and the socket to answer it on. `closed` is set when the peer hangs up."""

    path: str
    headers: dict[str, str]
    body: dict[str, object]
    writer: asyncio.StreamWriter
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def head(self, status: int = 200, kind: str = "text/event-stream") -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.writer.write(head.encode())
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self.writer.drain()

    async def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    async def reply(self, status: int = 200, **body: object) -> None:
        data = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        self.writer.write(head.encode() + data)
        await self.writer.drain()

    def die(self) -> None:
        self.writer.transport.abort()

    async def hang(self) -> None:
        await self.closed.wait()


class ScriptedWorker:
    """Answers each request by `script`, in which a test says what goes right and wrong."""

    def __init__(self, worker_id: str, role: Role, script: Script, weights: str = "w1", model: str = "m") -> None:
        self.script = script
        self.calls: list[Call] = []
        self._called = asyncio.Condition()
        self.connections = 0
        self.state = State.READY
        self._id, self._role, self._weights, self._model = worker_id, role, weights, model
        self._server: asyncio.Server | None = None
        self.entry: Entry

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        worker = Worker(
            id=self._id,
            incarnation=f"{self._id}-{port}",
            epoch=port,
            role=self._role,
            http_url=f"http://127.0.0.1:{port}",
            model=self._model,
            weight_digest=self._weights,
        )
        self.entry = Entry(worker=worker, status=Status(state=State.READY))

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for call in self.calls:
                call.die()

    async def called(self, times: int = 1) -> Call:
        """The latest call, once there have been so many."""
        async with self._called:
            await self._called.wait_for(lambda: len(self.calls) >= times)
        return self.calls[-1]

    async def _note(self, call: Call) -> None:
        async with self._called:
            self.calls.append(call)
            self._called.notify_all()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                call = await self._read(reader, writer)
                await self._note(call)
                running = asyncio.ensure_future(self.script(call))
                peek = asyncio.ensure_future(reader.read(1))
                await asyncio.wait({running, peek}, return_when=asyncio.FIRST_COMPLETED)
                if peek.done() and not running.done():
                    call.closed.set()
                    await running
                    return
                await running
                peek.cancel()
                await asyncio.gather(peek, return_exceptions=True)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Call:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for line in head[1:] if line for name, _, value in [line.partition(":")]}
        body = await reader.readexactly(int(headers["content-length"]))
        return Call(head[0].split()[1], headers, json.loads(body), writer)


async def prefill_ok(call: Call) -> None:
    await call.reply(usage={})


async def hang(call: Call) -> None:
    await call.hang()


async def die(call: Call) -> None:
    call.die()


def events(*texts: str, done: bool = True) -> list[bytes]:
    lines = [f"data: {json.dumps({'text': text})}\n\n".encode() for text in texts]
    return [*lines, b"data: [DONE]\n\n"] if done else lines


def stream(*texts: str) -> Script:
    """Decode's script for a stream that goes well."""

    async def script(call: Call) -> None:
        await call.head()
        for event in events(*texts):
            await call.chunk(event)
        await call.end()

    return script


def answer(status: int = 200, **body: object) -> Script:
    async def script(call: Call) -> None:
        await call.reply(status, **body)

    return script


BODY_LIMIT = 1024 * 1024
BODIES_LIMIT = 4 * BODY_LIMIT


class Bench:
    """A gateway over workers whose view the test sets."""

    def __init__(
        self,
        core: Core,
        url: str,
        session: aiohttp.ClientSession,
        connections: set[ClientConnection],
        bodies: Bodies,
    ) -> None:
        self.core = core
        self.bodies = bodies
        self.connections = connections  # of clients, the session's included
        self.url = url
        self.session = session
        self.workers: list[ScriptedWorker] = []
        self._version = 0

    async def worker(
        self, worker_id: str, script: Script, role: Role | None = None, weights: str = "w1", model: str = "m"
    ) -> ScriptedWorker:
        """Start a worker and show it to the gateway; the role follows the first letter of its id."""
        by_letter = {"p": Role.PREFILL, "d": Role.DECODE, "b": Role.BOTH}
        worker = ScriptedWorker(worker_id, role or by_letter[worker_id[0]], script, weights, model)
        await worker.start()
        self.workers.append(worker)
        self.show(*self.workers)
        return worker

    def show(self, *workers: ScriptedWorker) -> None:
        """What the bootstrap server would say from now on."""
        self._version += 1
        entries = {
            worker.entry.worker.id: Entry(worker=worker.entry.worker, status=Status(state=worker.state))
            for worker in workers
        }
        self.core.update(View(version=self._version, connected=1, entries=entries))

    def post(self, path: str = "/v1/completions", **body: object) -> aiohttp.client._RequestContextManager:
        return self.session.post(self.url + path, json={"model": "m", "prompt": "hi", **body})

    def idle(self) -> bool:
        """Whether no request is counted anywhere."""
        fleet = self.core.router.fleet
        endpoints = (*fleet.endpoints.values(), *fleet.absent.values())
        counted = any(one.legs or one.sent_tokens for one in endpoints)
        return not (self.core.open or self.bodies.held or counted)


async def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until it holds; AssertionError after `seconds`."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    while clock() < deadline:
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"not within {seconds:g} s")


async def _look(core: Core) -> None:
    while True:
        await asyncio.sleep(LOOK_EVERY)
        core.look()


@asynccontextmanager
async def gateway_bench(
    config: RoutingConfig, patience: Patience | None = None, admission: Admission | None = None
) -> AsyncIterator[Bench]:
    """A gateway's data path and admin routes on a real port; at the end no request may be left counted."""
    history = History()
    core = Core(Router(config), admission, patience, on_begin=history.add)
    siblings = Siblings()
    siblings.attach(lambda: core.figures.report(core.gauges(1, 0)), history.explain)
    app = App(core, admin_app(core, siblings))
    connections: set[ClientConnection] = set()
    bodies = Bodies(BODY_LIMIT, BODIES_LIMIT)
    server = await asyncio.get_running_loop().create_server(
        lambda: ClientConnection(app, connections, bodies), "127.0.0.1", 0
    )
    looking = asyncio.create_task(_look(core))
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        bench = Bench(core, url, session, connections, bodies)
        yield bench
    await eventually(bench.idle)  # a prefill leg may outlive its answer by a moment
    looking.cancel()
    server.close()
    for connection in list(connections):
        connection.close()
    for worker in bench.workers:
        await worker.stop()
