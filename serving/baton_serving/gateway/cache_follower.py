"""Follows what workers tell of their caches: one stream a worker, from which the routing memory is kept right.

A stream begins with a snapshot. When it breaks, falls silent or skips a change, it is begun anew, so nothing that was
missed stays wrong. Until then the memory goes by the gateway's own decisions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import aiohttp
import msgspec

from baton_bootstrap.tls import PEER_NAME, Tls
from baton_serving.logs import fields
from baton_serving.runtime.cache_frames import BEAT_SECONDS, PATH, CacheFrame, unpack_keys

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 3 * BEAT_SECONDS
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0  # seconds before a broken stream is begun anew
MAX_LINE = 64 * 1024 * 1024  # bytes: a snapshot of some six million keys
UNTOLD = frozenset({401, 403, 404, 405, 501})  # of a worker that tells nothing, or not to us: asking again is no use


class CacheMemory(Protocol):
    """Where what workers tell goes: `policies.memory.Memory`."""

    def holds(self, worker_id: str, incarnation: str, keys: Iterable[int]) -> None: ...

    def changed(self, worker_id: str, incarnation: str, stored: Sequence[int], removed: Sequence[int]) -> None: ...

    def silent(self, worker_id: str, incarnation: str) -> None: ...


@dataclass(frozen=True)
class Source:
    """A worker with a stream of cache events at `url`."""

    worker_id: str
    incarnation: str
    url: str


class _Broken(Exception):
    """The stream cannot be gone on with."""


class CacheFollower:
    """`update` with every view of the fleet; `aclose` at the end. `tls` and `key` are for workers, as for requests."""

    def __init__(self, memory: CacheMemory, tls: Tls | None = None, key: str | None = None) -> None:
        self._memory = memory
        self._tls = tls
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._tasks: dict[Source, asyncio.Task[None]] = {}
        self._session: aiohttp.ClientSession | None = None
        self.resyncs = 0  # streams that broke
        self.streams = 0  # streams that are being read

    def update(self, sources: Iterable[Source]) -> None:
        """Follow these workers and no others."""
        wanted = set(sources)
        for source in self._tasks.keys() - wanted:
            self._tasks.pop(source).cancel()
        for source in wanted - self._tasks.keys():
            self._tasks[source] = asyncio.create_task(self._follow(source))

    async def aclose(self) -> None:
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _follow(self, source: Source) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                if not await self._read(source):
                    return
                pause = FIRST_PAUSE
            except (_Broken, aiohttp.ClientError, TimeoutError, OSError, ValueError, msgspec.DecodeError) as error:
                log.debug("cache events broke off", extra=fields(worker=source.worker_id, reason=str(error)))
            self._memory.silent(source.worker_id, source.incarnation)
            self.resyncs += 1
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, 2 * pause)

    async def _read(self, source: Source) -> bool:
        """Take in one stream to its end; False when the worker has none for us."""
        if self._session is None:
            self._session = aiohttp.ClientSession()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
        tls, name = (True, None) if self._tls is None else (self._tls.client, PEER_NAME)
        url = source.url + PATH
        asking = self._session.get(url, timeout=timeout, ssl=tls, server_hostname=name, headers=self._headers)
        async with asking as response:
            if response.status in UNTOLD:
                log.info("no cache events", extra=fields(worker=source.worker_id, status=response.status))
                return False
            response.raise_for_status()
            reader = _Reader(self._memory, source)
            self.streams += 1
            try:
                async for data in response.content.iter_any():
                    reader.feed(data)
            finally:
                self.streams -= 1
        return True


class _Reader:
    """One stream's lines, in order and without a gap."""

    def __init__(self, memory: CacheMemory, source: Source) -> None:
        self._memory = memory
        self._worker = source.worker_id, source.incarnation
        self._seq: int | None = None
        self._rest = b""
        self._decoder = msgspec.json.Decoder(CacheFrame)

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            raise _Broken(f"a line has more than {MAX_LINE} bytes")
        for line in lines:
            self._take(self._decoder.decode(line))

    def _take(self, frame: CacheFrame) -> None:
        if frame.snapshot:
            self._memory.holds(*self._worker, unpack_keys(frame.stored))
        elif self._seq is None:
            raise _Broken("it did not begin with a snapshot")
        elif frame.stored or frame.removed:
            if frame.seq != self._seq + 1:
                raise _Broken(f"change {frame.seq} came after {self._seq}")
            self._memory.changed(*self._worker, unpack_keys(frame.stored), unpack_keys(frame.removed))
        elif frame.seq != self._seq:
            raise _Broken(f"change {frame.seq} was never told")
        self._seq = frame.seq
