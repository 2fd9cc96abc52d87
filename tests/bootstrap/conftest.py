"""Workers made to order, and servers on free ports that end with the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from baton_bootstrap.client import View, WatchClient
from baton_bootstrap.records import Role, Worker
from baton_bootstrap.server import BootstrapServer, ServerConfig

MakeWorker = Callable[..., Worker]
StartServer = Callable[..., Awaitable[BootstrapServer]]


@pytest.fixture
def make_worker() -> MakeWorker:
    """A complete worker; any field can be given."""
    epochs: Iterator[int] = iter(range(1, 1_000_000))

    def make(worker_id: str = "prefill-0", **fields: object) -> Worker:
        epoch = next(epochs)
        facts: dict[str, object] = {
            "incarnation": f"{epoch:032x}",
            "epoch": epoch,
            "role": Role.PREFILL,
            "http_url": "http://127.0.0.1:30000",
            "grpc_url": "127.0.0.1:30001",
            "control": "tcp://127.0.0.1:30002",
            "model": "tiny",
            "weight_digest": "w1",
            "engine_digest": "e1",
            "page_size": 16,
            "dtype": "bfloat16",
            "max_total_tokens": 4096,
            "detail": b"layout",
        }
        return Worker(id=worker_id, **(facts | fields))  # type: ignore[arg-type]

    return make


@pytest.fixture
async def start_server() -> AsyncIterator[StartServer]:
    servers: list[BootstrapServer] = []

    async def start(**config: object) -> BootstrapServer:
        server = BootstrapServer(ServerConfig(**config))  # type: ignore[arg-type]
        await server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.stop()


@pytest.fixture
def view_where() -> Callable[[WatchClient, Callable[[View], bool]], Awaitable[View]]:
    """Waits, event by event, for a view that fulfils a condition."""

    async def wait(watch: WatchClient, condition: Callable[[View], bool]) -> View:
        view = watch.view
        while not condition(view):
            view = await watch.changed(view.version)
        return view

    return wait
