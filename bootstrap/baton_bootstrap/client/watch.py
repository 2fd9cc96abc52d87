"""Keeps one view of all workers, merged over the replicas of the bootstrap server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from baton_bootstrap.auth import credentials
from baton_bootstrap.client.link import REPLY_TIMEOUT, Backoff, connect, parse_addresses
from baton_bootstrap.client.view import ReplicaView, View, merge, only
from baton_bootstrap.errors import NotFound, Refused, SetupError, Unreachable
from baton_bootstrap.records import Entry
from baton_bootstrap.tls import TlsFiles
from baton_bootstrap.wire import codec
from baton_bootstrap.wire.generated import registry_pb2 as pb

logger = logging.getLogger(__name__)

QUIET_PERIODS = 3  # a stream that skips this many of its regular events is dead


class WatchClient:
    """`view` is always the latest; `changed` waits for a later one. With every replica away the last view stays."""

    def __init__(
        self, addresses: str | Sequence[str], *, token: str | None = None, tls: TlsFiles | None = None
    ) -> None:
        self.view = View()
        self._addresses = parse_addresses(addresses)
        self._credentials = credentials(token)
        self._tls = tls
        self._replicas = dict.fromkeys(self._addresses, ReplicaView())
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Begin; does not wait for a server."""
        self._tasks = [asyncio.create_task(self._follow(address)) for address in self._addresses]

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def changed(self, version: int) -> View:
        """The view as soon as its version is past `version`."""
        while self.view.version <= version:
            await self._news.wait()
        return self.view

    async def find(self, key: str) -> Entry:
        """The one live worker with this id or key; asks the servers when the view does not know it.

        Raises `NotFound`, `Ambiguous`, or `Unreachable` when no replica answered.
        """
        try:
            return self.view.find(key)
        except NotFound:
            return only(key, await self._lookup(key))

    async def _lookup(self, key: str) -> list[Entry]:
        answered = False
        found: dict[str, Entry] = {}
        for address in self._addresses:
            try:
                async with connect(address, self._tls) as stub:
                    request = pb.LookupRequest(key=key)
                    reply: pb.LookupReply = await stub.Lookup(
                        request, metadata=self._credentials, timeout=REPLY_TIMEOUT
                    )
                entries = [codec.entry_from_wire(message) for message in reply.entries]
            except (grpc.aio.AioRpcError, Refused, SetupError) as error:
                logger.info("bootstrap server %s cannot look up %r: %s", address, key, error)
                continue
            answered = True
            for entry in entries:
                held = found.get(entry.worker.id)
                if held is None or entry.worker.epoch > held.worker.epoch:
                    found[entry.worker.id] = entry
        if not answered:
            raise Unreachable(f"no bootstrap server of {', '.join(self._addresses)} answered the look-up of {key!r}")
        return list(found.values())

    async def _follow(self, address: str) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._session(address, backoff)
            except (grpc.aio.AioRpcError, TimeoutError, Refused, SetupError) as error:
                if self._replicas[address].connected:
                    logger.warning("lost bootstrap server %s: %s", address, _reason(error))
            self._put(address, self._replicas[address].lost())
            await asyncio.sleep(backoff.next())

    async def _session(self, address: str, backoff: Backoff) -> None:
        """Follow one stream until it ends, breaks, falls silent, or skips a revision."""
        async with connect(address, self._tls) as stub:
            call: grpc.aio.UnaryStreamCall[pb.WatchRequest, pb.WatchEvent] = stub.Watch(
                pb.WatchRequest(), metadata=self._credentials
            )
            patience = REPLY_TIMEOUT
            while True:
                async with asyncio.timeout(patience):
                    event = await call.read()
                if not isinstance(event, pb.WatchEvent):
                    return
                replica, removed = self._apply(address, event)
                if replica is None:
                    logger.info("bootstrap server %s: a revision is missing, asking for a snapshot", address)
                    return
                if event.WhichOneof("kind") == "snapshot":
                    backoff.reset()
                    patience = max(QUIET_PERIODS * event.snapshot.quiet_seconds, 1.0)
                self._put(address, replica, removed)

    def _apply(self, address: str, event: pb.WatchEvent) -> tuple[ReplicaView | None, frozenset[str]]:
        """The replica's view after the event, None for a gap, and the workers it saw go."""
        replica = self._replicas[address]
        if event.WhichOneof("kind") == "snapshot":
            return replica.with_snapshot(codec.snapshot_from_wire(event.snapshot)), frozenset()
        delta = codec.delta_from_wire(event.delta)
        return replica.with_delta(delta), frozenset(delta.removed)

    def _put(self, address: str, replica: ReplicaView, removed: frozenset[str] = frozenset()) -> None:
        if replica == self._replicas[address]:
            return
        self._replicas[address] = replica
        known = {worker_id: entry for worker_id, entry in self.view.entries.items() if worker_id not in removed}
        entries = merge(self._replicas.values(), known)
        connected = sum(replica.connected for replica in self._replicas.values())
        if entries == self.view.entries and connected == self.view.connected:
            return
        self.view = View(version=self.view.version + 1, connected=connected, entries=entries)
        self._news.set()
        self._news = asyncio.Event()


def _reason(error: Exception) -> str:
    return (error.details() or error.code().name) if isinstance(error, grpc.aio.AioRpcError) else repr(error)
