"""What a transfer backend must do. Queues, slicing, deadlines, retries and aborts live above it, once."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import Enum
from typing import Protocol

import msgspec

from baton_serving.handoff.plan import Runs


class BackendError(Exception):
    """A backend call failed; nothing of it is in flight."""


class Outcome(Enum):
    """How a posted write stands. Only `DONE` says that the bytes are in the peer's memory."""

    PENDING = "pending"
    DONE = "done"
    NOTHING_SENT = "nothing sent"  # failed before the first byte: no page was touched or is being read
    BROKEN = "broken"  # failed; our memory is no longer read, but bytes under way may still land at the peer
    HUNG = "hung"  # past its deadline: our memory may still be read and bytes may still land


class MemoryRegion(msgspec.Struct, frozen=True):
    """One registered pool: `nbytes` from virtual address `address`, on the host or on CUDA device `device_id`."""

    address: int
    nbytes: int
    cuda: bool = False
    device_id: int = 0


class Transport(msgspec.Struct, frozen=True):
    """`asked` is what the configuration named, `used` what really moves the bytes, as far as it can be told."""

    asked: str
    used: str

    @property
    def degraded(self) -> bool:
        return self.asked not in ("", "auto", self.used)


class TransferBackend(Protocol):
    """One transfer engine over one memory region. Not thread-safe: one thread calls it.

    One `post` takes at most `max_blocks` runs and `max_bytes` bytes, and `max_posts` of them may be under way to one
    peer. `fenced_by_close` says that after `close` no peer
    can write into the region through this engine any more; where it is False only the death of the peer fences.
    """

    max_blocks: int
    max_bytes: int
    max_posts: int
    fenced_by_close: bool

    def register(self, region: MemoryRegion) -> None:
        """Make the region readable and writable for peers (once, before anything else). Raises BackendError."""

    def endpoint(self) -> bytes:
        """What a peer needs for `connect`."""

    def transport(self) -> Transport: ...

    def connect(self, endpoint: bytes, address: int) -> str:
        """Begin to connect to the engine behind `endpoint`, whose page 0 is at `address`; returns its name here.

        Never waits for the peer: it may be hung. Page 0 holds nothing, so a backend may write into it to warm up.
        Idempotent. Raises BackendError for an endpoint that makes no sense."""

    def connected(self, peer: str) -> bool:
        """Whether writes may be posted. Raises BackendError, once, when the connection failed; then connect again."""

    def disconnect(self, peer: str) -> None:
        """Forget a peer towards which no write is under way; harmless when unknown."""

    def post(self, peer: str, runs: Runs) -> int:
        """Start writing `runs` (absolute addresses) to `peer`; returns a ticket. Raises BackendError when nothing
        was sent."""

    def poll(self, ticket: int) -> Outcome:
        """`PENDING` until the write ended; any other answer ends the ticket. Never `HUNG`: deadlines live above."""

    def close(self) -> None:
        """Tear the engine down: connections, registration, tickets. After it our memory is not read by this engine."""


BackendFactory = Callable[[str], TransferBackend]  # engine name, unique per incarnation, rank and epoch


class PoolMemory(Protocol):
    """A rank's pool as the handoff sees it."""

    region: MemoryRegion

    @property
    def read(self) -> Callable[[int, int], bytes]:
        """Bytes of the pool from an offset on, for page hashes."""


class DeviceMemory:
    """A pool on a CUDA device. `copy` brings bytes `(offset, nbytes)` of it to the host."""

    def __init__(self, address: int, nbytes: int, device_id: int, copy: Callable[[int, int], bytes]) -> None:
        self.region = MemoryRegion(address=address, nbytes=nbytes, cuda=True, device_id=device_id)
        self.read = copy


class HostMemory:
    """A pool in host memory. Keeps no reference to its owner, which must outlive it."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.region = MemoryRegion(address=address, nbytes=nbytes)

    def read(self, offset: int, nbytes: int) -> bytes:
        if offset < 0 or offset + nbytes > self.region.nbytes:
            raise ValueError(f"{nbytes} bytes at {offset} lie outside the pool of {self.region.nbytes}")
        return ctypes.string_at(self.region.address + offset, nbytes)
