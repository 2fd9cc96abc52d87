"""The gRPC service: streams in, pure registry calls, streams out. Runs wholly on one asyncio loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import NoReturn

import grpc
import grpc.aio

from baton_bootstrap.auth import HEADER, admits
from baton_bootstrap.errors import LeaseLost, Refused
from baton_bootstrap.metrics import Metrics
from baton_bootstrap.records import Assignment, Departure
from baton_bootstrap.registry import Change, Lease, Registry
from baton_bootstrap.wire import codec
from baton_bootstrap.wire.generated import registry_pb2 as pb
from baton_bootstrap.wire.generated.registry_pb2_grpc import RegistryServicer

LOAD_DELAY = 0.1  # seconds that changes of load alone wait for company
BEATS_PER_LEASE = 4

Context = grpc.aio.ServicerContext[pb.RegisterRequest, pb.RegisterReply]


class Pulse:
    """Tells any number of waiters that something changed; `count` lets each see whether it missed a beat."""

    def __init__(self) -> None:
        self.count = 0
        self._event = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def fire(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.count += 1
        self._event.set()
        self._event = asyncio.Event()

    def fire_soon(self, delay: float) -> None:
        """Fire within `delay` seconds, together with whatever else changes until then."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(delay, self.fire)

    async def wait(self, seen: int, longest: float) -> None:
        """Return once `count` is past `seen`, or after `longest` seconds."""
        if self.count == seen:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._event.wait(), longest)


class RegistryService(RegistryServicer):
    """Registration, watch and look-up. `refresh` must be called a few times per lease."""

    def __init__(self, registry: Registry, metrics: Metrics, token: str | None = None) -> None:
        self._registry = registry
        self._metrics = metrics
        self._token = token
        self._pulse = Pulse()
        self._orders = Pulse()
        self._was_warming = registry.warming

    def refresh(self) -> None:
        """Let the registry look at the clock and tell watchers what came of it."""
        before = self._registry.revision
        for _ in self._registry.sweep():
            self._metrics.departures.labels(Departure.EXPIRED).inc()
        warmed = self._was_warming and not self._registry.warming
        self._was_warming = self._registry.warming
        if warmed or self._registry.revision != before:
            self._pulse.fire()

    async def Register(  # noqa: N802  (named by the protocol)
        self, request_iterator: AsyncIterator[pb.RegisterRequest], context: Context
    ) -> AsyncIterator[pb.RegisterReply]:
        await self._admit(context)
        lease: Lease | None = None
        reason = Departure.BROKEN
        told: Assignment | None = None
        try:
            async for request in self._requests(request_iterator):
                if request is None:  # somebody's assignment is new
                    if lease is not None and self._registry.assignment(lease.worker_id) != told:
                        told = self._registry.assignment(lease.worker_id)
                        yield self._ack(told)
                    continue
                if request.WhichOneof("kind") == "leave":
                    reason = Departure.LEFT
                    break
                if lease is None or request.WhichOneof("kind") == "hello":
                    lease = self._enter(request)
                    yield self._accepted()
                    told = self._registry.assignment(lease.worker_id)
                    if told is not None:
                        yield self._ack(told)
                else:
                    self._renew(lease, request)
                    told = self._registry.assignment(lease.worker_id)
                    yield self._ack(told)
        except Refused as refusal:
            self._metrics.refusals.inc()
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(refusal))
        except LeaseLost as loss:
            await _abort(context, grpc.StatusCode.ABORTED, str(loss))
        finally:
            if lease is not None and self._registry.leave(lease, reason):
                self._metrics.departures.labels(reason).inc()
                self._pulse.fire()

    async def Watch(  # noqa: N802  (named by the protocol)
        self, request: pb.WatchRequest, context: Context
    ) -> AsyncIterator[pb.WatchEvent]:
        await self._admit(context)
        quiet = self._registry.lease / 2
        revision = -1
        self._metrics.watchers.inc()
        try:
            while True:
                seen = self._pulse.count
                event, revision = self._event_since(revision, quiet)
                yield event
                await self._pulse.wait(seen, quiet)
        finally:
            self._metrics.watchers.dec()

    async def Lookup(  # noqa: N802  (named by the protocol)
        self, request: pb.LookupRequest, context: Context
    ) -> pb.LookupReply:
        await self._admit(context)
        entries = [codec.entry_to_wire(entry) for entry in self._registry.find(request.key)]
        return pb.LookupReply(entries=entries, warming=self._registry.warming)

    async def Assign(  # noqa: N802  (named by the protocol)
        self, request: pb.AssignRequest, context: Context
    ) -> pb.AssignReply:
        await self._admit(context)
        try:
            self._registry.assign(
                {key: codec.assignment_from_wire(message) for key, message in request.assignments.items()}
            )
        except Refused as refusal:
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(refusal))
        self.assigned()
        return pb.AssignReply(instance=self._registry.instance)

    def assigned(self) -> None:
        """Assignments are new: tell workers and watchers."""
        self._orders.fire()
        self._pulse.fire()

    async def _requests(self, requests: AsyncIterator[pb.RegisterRequest]) -> AsyncIterator[pb.RegisterRequest | None]:
        """A worker's requests as they come, and None whenever assignments have changed in between."""
        seen = self._orders.count
        reading = asyncio.ensure_future(anext(requests))
        try:
            while True:
                ordered = asyncio.ensure_future(self._orders.wait(seen, self._registry.lease))
                await asyncio.wait([reading, ordered], return_when=asyncio.FIRST_COMPLETED)
                ordered.cancel()
                if reading.done():
                    try:
                        yield reading.result()
                    except StopAsyncIteration:
                        return
                    reading = asyncio.ensure_future(anext(requests))
                if self._orders.count != seen:
                    seen = self._orders.count
                    yield None
        finally:
            reading.cancel()

    async def Assigned(  # noqa: N802  (named by the protocol)
        self, request: pb.AssignedRequest, context: Context
    ) -> pb.AssignedReply:
        await self._admit(context)
        found = (self._registry.assignment(name) for name in request.names)
        assignment = next((one for one in found if one is not None), None)
        return pb.AssignedReply(assignment=None if assignment is None else codec.assignment_to_wire(assignment))

    async def Waiting(  # noqa: N802  (named by the protocol)
        self, request: pb.WaitingRequest, context: Context
    ) -> pb.WaitingReply:
        await self._admit(context)
        try:
            self._registry.hold(request.gateway, request.requests)
        except Refused as refusal:
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(refusal))
        return pb.WaitingReply()

    async def _admit(self, context: Context) -> None:
        metadata = dict(context.invocation_metadata() or ())
        header = metadata.get(HEADER)
        if not admits(self._token, header if isinstance(header, str) else None):
            await _abort(context, grpc.StatusCode.UNAUTHENTICATED, "the shared token is missing or wrong")

    def _enter(self, request: pb.RegisterRequest) -> Lease:
        if request.WhichOneof("kind") != "hello":
            raise Refused("the first message of a registration must be a hello")
        worker = codec.worker_from_wire(request.hello.worker)
        lease = self._registry.register(worker, codec.beat_from_wire(request.hello.beat))
        self._metrics.registrations.inc()
        self._pulse.fire()
        return lease

    def _renew(self, lease: Lease, request: pb.RegisterRequest) -> None:
        if request.WhichOneof("kind") != "beat":
            raise Refused("after its hello a registration sends beats, further hellos and at last a leave")
        change = self._registry.beat(lease, codec.beat_from_wire(request.beat))
        if change is Change.STATE:
            self._pulse.fire()
        elif change is Change.LOAD:
            self._pulse.fire_soon(LOAD_DELAY)

    def _accepted(self) -> pb.RegisterReply:
        lease = self._registry.lease
        return pb.RegisterReply(
            accepted=pb.Accepted(
                instance=self._registry.instance, lease_seconds=lease, beat_seconds=lease / BEATS_PER_LEASE
            )
        )

    def _ack(self, assignment: Assignment | None) -> pb.RegisterReply:
        wire = None if assignment is None else codec.assignment_to_wire(assignment)
        return pb.RegisterReply(ack=pb.BeatAck(assignment=wire))

    def _event_since(self, revision: int, quiet: float) -> tuple[pb.WatchEvent, int]:
        delta = self._registry.changes_since(revision)
        if delta is not None:
            return pb.WatchEvent(delta=codec.delta_to_wire(delta)), delta.revision
        self._metrics.snapshots.inc()
        snapshot = self._registry.snapshot()
        return pb.WatchEvent(snapshot=codec.snapshot_to_wire(snapshot, quiet)), snapshot.revision


async def _abort(context: Context, code: grpc.StatusCode, message: str) -> NoReturn:
    await context.abort(code, message)
    raise AssertionError("abort returned")
