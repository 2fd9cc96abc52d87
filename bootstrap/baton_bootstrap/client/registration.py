"""Keeps one worker registered with every replica of the bootstrap server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from baton_bootstrap.auth import credentials
from baton_bootstrap.client.link import REPLY_TIMEOUT, Backoff, connect, parse_addresses
from baton_bootstrap.errors import SetupError
from baton_bootstrap.records import Assignment, Beat, Worker
from baton_bootstrap.tls import TlsFiles
from baton_bootstrap.wire import codec
from baton_bootstrap.wire.generated import registry_pb2 as pb

logger = logging.getLogger(__name__)

_REFUSALS = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAUTHENTICATED)

Call = grpc.aio.StreamStreamCall[pb.RegisterRequest, pb.RegisterReply]


class RegistrationClient:
    """Holds a stream to each replica and sends `source()` as heartbeat: as often as the server asks, and on `poke`.

    A stream that breaks, or a server that falls silent, is replaced after a short pause; nothing else notices.
    `source` is called on the loop and must not block; `on_assignment` hears what any replica says this worker is to
    serve, as often as it says so.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        worker: Worker,
        source: Callable[[], Beat],
        *,
        token: str | None = None,
        tls: TlsFiles | None = None,
        on_assignment: Callable[[Assignment], None] = lambda assignment: None,
    ) -> None:
        self.worker = worker
        self._on_assignment = on_assignment
        self.refusals: dict[str, str] = {}  # what a replica that refuses this worker says
        self._addresses = parse_addresses(addresses)
        self._source = source
        self._credentials = credentials(token)
        self._tls = tls
        self._pokes = {address: asyncio.Event() for address in self._addresses}
        self._accepted: set[str] = set()
        self._news = asyncio.Event()
        self._closing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def connected(self) -> int:
        """Replicas that hold this worker's registration."""
        return len(self._accepted)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Begin; does not wait for a server."""
        self._tasks = [asyncio.create_task(self._hold(address)) for address in self._addresses]

    async def registered(self, replicas: int = 1) -> None:
        """Return once at least so many replicas hold the registration."""
        while self.connected < replicas:
            await self._news.wait()

    async def refused(self) -> str:
        """Return what the first replica says that refuses this worker."""
        while not self.refusals:
            await self._news.wait()
        return next(iter(self.refusals.values()))

    def poke(self) -> None:
        """Send a heartbeat now: the state changed, or the next turn of the loop will be long."""
        for event in self._pokes.values():
            event.set()

    def replace(self, worker: Worker) -> None:
        """Be this worker from now on, at every replica, in one step; its `id` stays."""
        self.worker = worker
        self.poke()

    async def aclose(self) -> None:
        """Say goodbye to every replica, for at most a second, and end."""
        self._closing.set()
        self.poke()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=1.0)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _hold(self, address: str) -> None:
        backoff = Backoff()
        while not self._closing.is_set():
            try:
                await self._session(address, backoff)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError, SetupError) as error:
                self._note(address, error)
            finally:
                self._set_accepted(address, False)
            if not self._closing.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), backoff.next())

    async def _session(self, address: str, backoff: Backoff) -> None:
        async with connect(address, self._tls) as stub:
            call: Call = stub.Register(metadata=self._credentials)
            said = self.worker
            async with asyncio.timeout(REPLY_TIMEOUT):
                await call.write(self._hello(said))
                reply = await call.read()
            if not isinstance(reply, pb.RegisterReply):
                return
            backoff.reset()
            self.refusals.pop(address, None)
            self._set_accepted(address, True)
            logger.info("registered %s with %s", self.worker.id, address)
            await self._beats(address, call, reply.accepted, said)

    def _hello(self, worker: Worker) -> pb.RegisterRequest:
        hello = pb.Hello(worker=codec.worker_to_wire(worker), beat=codec.beat_to_wire(self._source()))
        return pb.RegisterRequest(hello=hello)

    async def _beats(self, address: str, call: Call, accepted: pb.Accepted, said: Worker) -> None:
        poke, answered = self._pokes[address], asyncio.Event()
        reading = asyncio.create_task(self._replies(call, answered))
        try:
            while not await _within(accepted.beat_seconds, poke, reading):
                poke.clear()
                answered.clear()
                async with asyncio.timeout(accepted.lease_seconds):
                    if self._closing.is_set():
                        await call.write(pb.RegisterRequest(leave=pb.Leave()))
                        await call.done_writing()
                        await reading
                        return
                    if said is not self.worker:
                        said = self.worker
                        await call.write(self._hello(said))
                    else:
                        await call.write(pb.RegisterRequest(beat=codec.beat_to_wire(self._source())))
                    await _within(None, answered, reading)
            reading.result()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _replies(self, call: Call, answered: asyncio.Event) -> None:
        """Until the stream ends. Acknowledgements come after beats, and when there is a new assignment."""
        while isinstance(reply := await call.read(), pb.RegisterReply):
            answered.set()
            if reply.ack.HasField("assignment"):
                self._on_assignment(codec.assignment_from_wire(reply.ack.assignment))

    def _set_accepted(self, address: str, accepted: bool) -> None:
        (self._accepted.add if accepted else self._accepted.discard)(address)
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _note(self, address: str, error: Exception) -> None:
        if isinstance(error, grpc.aio.AioRpcError) and error.code() in _REFUSALS:
            details = error.details() or error.code().name
            if self.refusals.get(address) != details:
                logger.warning("bootstrap server %s refuses %s: %s", address, self.worker.id, details)
            self.refusals[address] = details
            self._tell()
            return
        logger.info("bootstrap server %s does not hold %s: %s", address, self.worker.id, type(error).__name__)


async def _within(seconds: float | None, event: asyncio.Event, ending: asyncio.Task[None]) -> bool:
    """Return when `event` is set, `seconds` have passed or `ending` is done, and whether it is that."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait([waiting, ending], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return ending.done()
