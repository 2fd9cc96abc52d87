"""The clients hosted on a thread, as a process without a loop uses them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from baton_bootstrap.client import BootstrapThread
from baton_bootstrap.errors import NotFound
from baton_bootstrap.records import Beat, State, Worker
from baton_bootstrap.server import BootstrapServer

MakeWorker = Callable[..., Worker]
StartServer = Callable[..., Awaitable[BootstrapServer]]


async def test_register_watch_and_find_from_a_plain_thread(start_server: StartServer, make_worker: MakeWorker) -> None:
    server = await start_server(lease=60.0)
    worker = make_worker(keys=("h:1",))

    def use() -> None:
        with BootstrapThread(f"127.0.0.1:{server.port}") as bootstrap:
            bootstrap.register(worker, lambda: Beat(state=State.READY), timeout=10)
            bootstrap.poke()
            assert bootstrap.find("h:1").worker == worker
            view = bootstrap.view
            while "prefill-0" not in view.entries:
                view = bootstrap.changed(view.version, timeout=10)
            with pytest.raises(NotFound):
                bootstrap.find("h:2")
        bootstrap.close()

    await asyncio.to_thread(use)
    assert len(server.registry) == 0


def test_registering_with_nobody_there_times_out(make_worker: MakeWorker) -> None:
    with BootstrapThread("127.0.0.1:1") as bootstrap, pytest.raises(TimeoutError):
        bootstrap.register(make_worker(), Beat, timeout=0.1)
