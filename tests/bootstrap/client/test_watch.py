"""The watch over real gRPC: gaps, slow readers, look-ups."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc.aio
import pytest

from baton_bootstrap.client import View, WatchClient
from baton_bootstrap.client.link import connect, parse_addresses
from baton_bootstrap.errors import Ambiguous, NotFound, SetupError, Unreachable
from baton_bootstrap.records import Beat, Departure, Load, State, Worker
from baton_bootstrap.server import BootstrapServer
from baton_bootstrap.wire.generated import registry_pb2 as pb
from baton_bootstrap.wire.generated.registry_pb2_grpc import RegistryServicer, add_RegistryServicer_to_server

MakeWorker = Callable[..., Worker]
StartServer = Callable[..., Awaitable[BootstrapServer]]
ViewWhere = Callable[[WatchClient, Callable[[View], bool]], Awaitable[View]]

READY = Beat(state=State.READY, tick=1)


class SkippingServer(RegistryServicer):
    """Sends a delta that skips a revision on the first stream; what it meant is in the second stream's snapshot."""

    def __init__(self) -> None:
        self.streams = 0

    async def Watch(self, request: pb.WatchRequest, context: object) -> AsyncIterator[pb.WatchEvent]:  # noqa: N802
        self.streams += 1
        worker = pb.Worker(id=f"seen-{self.streams}", role=pb.ROLE_BOTH)
        entry = pb.Entry(worker=worker, status=pb.Status(state=pb.STATE_READY))
        yield pb.WatchEvent(snapshot=pb.Snapshot(instance="i", revision=1, quiet_seconds=60, entries=[entry]))
        yield pb.WatchEvent(
            delta=pb.Delta(base=2, revision=3, removed=[pb.Removal(id="seen-1", reason=pb.DEPARTURE_LEFT)])
        )
        await asyncio.Event().wait()


async def test_a_skipped_revision_brings_a_new_snapshot(view_where: ViewWhere) -> None:
    servicer = SkippingServer()
    server = grpc.aio.server()
    add_RegistryServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with WatchClient(f"127.0.0.1:{port}") as watch:
        view = await view_where(watch, lambda view: "seen-2" in view.entries)
        assert set(view.entries) == {"seen-2"}
    await server.stop(None)


async def test_a_slow_reader_gets_the_latest_state_not_every_step(
    start_server: StartServer, make_worker: MakeWorker
) -> None:
    server = await start_server(lease=600.0)
    lease = server.registry.register(make_worker(), READY)
    async with connect(f"127.0.0.1:{server.port}") as stub:
        call = stub.Watch(pb.WatchRequest())
        first = await call.read()
        assert first.WhichOneof("kind") == "snapshot"
        for tick in range(2, 1000):
            server.registry.beat(lease, Beat(state=State.READY, tick=tick, load=Load(running=tick)))
        server._service.refresh()
        server._service._pulse.fire()
        delta = (await call.read()).delta
        assert (delta.base, delta.revision) == (first.snapshot.revision, server.registry.revision)
        assert [change.status.load.running for change in delta.changed] == [999]
        assert not delta.joined


async def test_a_watcher_beyond_the_departures_kept_gets_a_snapshot_in_the_same_stream(
    start_server: StartServer, make_worker: MakeWorker
) -> None:
    server = await start_server(lease=600.0)
    async with connect(f"127.0.0.1:{server.port}") as stub:
        call = stub.Watch(pb.WatchRequest())
        await call.read()
        for number in range(5000):
            server.registry.leave(server.registry.register(make_worker(f"w{number}"), READY), Departure.LEFT)
        server.registry.register(make_worker("last"), READY)
        server._service._pulse.fire()
        event = await call.read()
        assert [entry.worker.id for entry in event.snapshot.entries] == ["last"]


async def test_a_lookup_asks_the_server_for_what_the_view_lacks(
    start_server: StartServer, make_worker: MakeWorker
) -> None:
    server = await start_server(lease=600.0)
    server.registry.register(make_worker("p-1", keys=("h:1", "h:2")), READY)
    server.registry.register(make_worker("p-2", keys=("h:2",)), READY)
    watch = WatchClient(f"127.0.0.1:{server.port}")
    assert (await watch.find("h:1")).worker.id == "p-1"
    with pytest.raises(Ambiguous):
        await watch.find("h:2")
    with pytest.raises(NotFound):
        await watch.find("h:3")
    await server.stop()
    with pytest.raises(Unreachable):
        await watch.find("h:1")


@pytest.mark.parametrize("bad", ["", " , ", "localhost", "host:", ":80", "host:http"])
def test_bad_addresses_are_refused(bad: str) -> None:
    with pytest.raises(SetupError):
        parse_addresses(bad)


def test_addresses_are_told_apart_once() -> None:
    assert parse_addresses(" a:1,b:2 , a:1") == ("a:1", "b:2")
