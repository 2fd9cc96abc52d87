"""Registration over real gRPC: arrival, departure, silence, stalls, refusals, and servers that come and go."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

import grpc.aio
import msgspec

from baton_bootstrap.client import RegistrationClient, View, WatchClient, assign
from baton_bootstrap.client.link import connect
from baton_bootstrap.records import Assignment, Beat, Goal, Load, State, Worker
from baton_bootstrap.server import BootstrapServer
from baton_bootstrap.wire import codec
from baton_bootstrap.wire.generated import registry_pb2 as pb

MakeWorker = Callable[..., Worker]
StartServer = Callable[..., Awaitable[BootstrapServer]]
ViewWhere = Callable[[WatchClient, Callable[[View], bool]], Awaitable[View]]


class Scheduler:
    """Stands for a worker's scheduler loop: ticks with every look unless told to hang."""

    def __init__(self) -> None:
        self.beat = Beat(state=State.READY)
        self.hangs = False

    def __call__(self) -> Beat:
        if not self.hangs:
            self.beat = Beat(state=self.beat.state, load=self.beat.load, tick=self.beat.tick + 1)
        return self.beat


def address(server: BootstrapServer) -> str:
    return f"127.0.0.1:{server.port}"


async def test_a_worker_arrives_reports_and_leaves(
    start_server: StartServer, make_worker: MakeWorker, view_where: ViewWhere
) -> None:
    server = await start_server(lease=60.0)
    worker, scheduler = make_worker(), Scheduler()
    async with WatchClient([address(server)]) as watch:
        async with RegistrationClient([address(server)], worker, scheduler) as client:
            await client.registered()
            view = await view_where(watch, lambda view: "prefill-0" in view.entries)
            assert view.entries["prefill-0"].worker == worker
            scheduler.beat = Beat(state=State.DRAINING, load=Load(running=3, free_pages=9))
            client.poke()
            view = await view_where(watch, lambda view: not view.entries["prefill-0"].ready)
            assert view.entries["prefill-0"].status.load == Load(running=3, free_pages=9)
        await view_where(watch, lambda view: not view.entries)


async def test_a_worker_becomes_another_and_hears_its_assignment(
    start_server: StartServer, make_worker: MakeWorker, view_where: ViewWhere
) -> None:
    server = await start_server(lease=60.0)
    worker = make_worker()
    heard: list[Assignment] = []
    told = Assignment(revision="v2", model="/models/new", goal=Goal.SWITCH, whole=True, share=30)
    arrived = asyncio.Event()

    def hear(assignment: Assignment) -> None:
        heard.append(assignment)
        arrived.set()

    client = RegistrationClient([address(server)], worker, Scheduler(), on_assignment=hear)
    async with WatchClient([address(server)]) as watch, client:
        await client.registered()
        await view_where(watch, lambda view: "prefill-0" in view.entries)
        assert await assign([address(server)], {"prefill-0": told, "unknown": told}) == 1
        view = await view_where(watch, lambda view: view.entries["prefill-0"].status.share == 30)
        client.poke()
        later = msgspec.structs.replace(worker, incarnation="f" * 32, epoch=worker.epoch + 1, weight_digest="w2")
        seen: list[bool] = []

        def became(view: View) -> bool:
            seen.append("prefill-0" in view.entries)
            return view.entries["prefill-0"].worker == later

        client.replace(later)
        view = await view_where(watch, became)
        assert all(seen)  # never gone in between
        client.poke()
        async with asyncio.timeout(20):
            await arrived.wait()
        assert set(heard) == {told}
        assert view.entries["prefill-0"].status.share == 30
        assert await assign([address(server)], {}) == 1
        await view_where(watch, lambda view: view.entries["prefill-0"].status.share == 100)


WORKER_PROCESS = """
import asyncio, sys
from baton_bootstrap.client import RegistrationClient
from baton_bootstrap.records import Beat, Role, State, Worker

async def main():
    worker = Worker(id="child", incarnation="1", epoch=1, role=Role.BOTH, http_url="http://w")
    async with RegistrationClient(sys.argv[1], worker, lambda: Beat(state=State.READY)):
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_killed_worker_is_gone_at_once_whatever_the_lease(
    start_server: StartServer, view_where: ViewWhere
) -> None:
    server = await start_server(lease=600.0)
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", WORKER_PROCESS, address(server))
    try:
        async with WatchClient([address(server)]) as watch:
            await view_where(watch, lambda view: "child" in view.entries)
            child.kill()
            await view_where(watch, lambda view: not view.entries)
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def test_a_silent_worker_is_gone_after_its_lease_and_may_come_back(
    start_server: StartServer, make_worker: MakeWorker, view_where: ViewWhere
) -> None:
    server = await start_server(lease=0.4)
    hello = pb.Hello(worker=codec.worker_to_wire(make_worker()), beat=codec.beat_to_wire(Beat(state=State.READY)))
    async with WatchClient([address(server)]) as watch, connect(address(server)) as stub:
        call = stub.Register()
        await call.write(pb.RegisterRequest(hello=hello))
        await view_where(watch, lambda view: bool(view.entries))
        await view_where(watch, lambda view: not view.entries)
        await call.read()
        await call.write(pb.RegisterRequest(beat=hello.beat))
        try:
            assert not isinstance(await call.read(), pb.RegisterReply)
            code = await call.code()
        except grpc.aio.AioRpcError as error:
            code = error.code()
        assert code is grpc.StatusCode.ABORTED


async def test_a_hanging_scheduler_shows_as_stalled_until_it_ticks(
    start_server: StartServer, make_worker: MakeWorker, view_where: ViewWhere
) -> None:
    server = await start_server(lease=0.4)
    scheduler = Scheduler()
    async with (
        WatchClient([address(server)]) as watch,
        RegistrationClient([address(server)], make_worker(), scheduler),
    ):
        await view_where(watch, lambda view: bool(view.entries))
        scheduler.hangs = True
        await view_where(watch, lambda view: view.entries["prefill-0"].status.state is State.STALLED)
        scheduler.hangs = False
        await view_where(watch, lambda view: view.entries["prefill-0"].ready)


async def test_a_restarted_server_is_refilled_and_the_view_never_shrinks(
    start_server: StartServer, make_worker: MakeWorker, view_where: ViewWhere
) -> None:
    server = await start_server(lease=1.0)
    port = server.port
    workers = [make_worker(f"w{number}") for number in range(5)]
    clients = [RegistrationClient([address(server)], worker, Scheduler()) for worker in workers]
    sizes: list[int] = []

    async def record(watch: WatchClient) -> None:
        while True:
            view = await watch.changed(watch.view.version)
            sizes.append(len(view.entries))

    async with WatchClient([address(server)]) as watch:
        for client in clients:
            await client.start()
        await view_where(watch, lambda view: len(view.entries) == 5)
        recorder = asyncio.create_task(record(watch))
        await server.stop()
        await view_where(watch, lambda view: view.connected == 0)
        server = await start_server(lease=1.0, port=port)
        async with WatchClient([address(server)]) as fresh:
            await view_where(fresh, lambda view: len(view.entries) == 5)
        await clients[0].aclose()
        await view_where(watch, lambda view: len(view.entries) == 4)
        recorder.cancel()
        assert set(sizes) <= {5, 4}
        for client in clients[1:]:
            await client.aclose()


async def test_a_worker_that_died_while_the_server_was_away_is_gone_after_warming(
    start_server: StartServer, make_worker: MakeWorker, view_where: ViewWhere
) -> None:
    server = await start_server(lease=0.4)
    port = server.port
    dead, alive = (RegistrationClient([address(server)], make_worker(name), Scheduler()) for name in ("dead", "alive"))
    async with WatchClient([address(server)]) as watch, alive:
        await dead.start()
        await view_where(watch, lambda view: len(view.entries) == 2)
        await server.stop()
        view = await view_where(watch, lambda view: view.connected == 0)
        assert len(view.entries) == 2
        await dead.aclose()
        await start_server(lease=0.4, port=port)
        view = await view_where(watch, lambda view: len(view.entries) < 2)
        assert set(view.entries) == {"alive"}


async def test_a_second_worker_under_a_live_id_is_told_why_it_waits(
    start_server: StartServer, make_worker: MakeWorker, view_where: ViewWhere
) -> None:
    server = await start_server(lease=60.0)
    late, first = make_worker(), make_worker()
    async with WatchClient([address(server)]) as watch:
        holder = RegistrationClient([address(server)], first, Scheduler())
        await holder.start()
        await holder.registered()
        async with RegistrationClient([address(server)], late, Scheduler()) as client:
            assert "not newer" in await client.refused()
            assert client.connected == 0
            await holder.aclose()
            await client.registered()
            assert client.refusals == {}
            await view_where(watch, lambda view: [entry.worker for entry in view.entries.values()] == [late])


async def test_two_replicas_hold_a_worker_until_both_lost_it(
    start_server: StartServer, make_worker: MakeWorker, view_where: ViewWhere
) -> None:
    one, two = await start_server(lease=60.0), await start_server(lease=60.0)
    both = f"{address(one)}, {address(two)}"
    async with WatchClient(both) as watch, RegistrationClient(both, make_worker(), Scheduler()) as client:
        await client.registered(replicas=2)
        await view_where(watch, lambda view: view.connected == 2 and bool(view.entries))
        await one.stop()
        view = await view_where(watch, lambda view: view.connected == 1)
        assert "prefill-0" in view.entries
        await client.aclose()
        await view_where(watch, lambda view: not view.entries)


async def test_a_wrong_token_is_refused_and_the_right_one_admitted(
    start_server: StartServer, make_worker: MakeWorker
) -> None:
    server = await start_server(token="s3cret")
    for token in (None, "s3cre", "s3cret "):
        async with RegistrationClient([address(server)], make_worker(), Scheduler(), token=token) as client:
            assert "token" in await client.refused()
    async with RegistrationClient([address(server)], make_worker(), Scheduler(), token="s3cret") as client:
        await client.registered()
