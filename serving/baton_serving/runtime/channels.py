"""ZeroMQ sockets of a worker, typed: one msgspec union per socket, msgpack on the wire.

Every queue has one reader, which binds; writers connect. Queues are unbounded here: admission bounds what may be in
flight (`--max-queued-requests`), and a full socket would block the scheduler loop.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import zmq

T = TypeVar("T")


class Addresses(msgspec.Struct, frozen=True):
    """Where a worker's processes meet: ipc sockets in a private directory."""

    directory: str
    scheduler: str
    detokenizer: str
    api: str
    reports: str
    commands: tuple[str, ...]
    transfer_reports: str
    transfers: tuple[str, ...]

    @classmethod
    def create(cls, tp_size: int) -> Addresses:
        """Make a directory that only this user can enter, and name one socket per queue in it."""
        directory = tempfile.mkdtemp(prefix="baton-")
        return cls(
            directory=directory,
            scheduler=f"ipc://{directory}/scheduler",
            detokenizer=f"ipc://{directory}/detokenizer",
            api=f"ipc://{directory}/api",
            reports=f"ipc://{directory}/reports",
            commands=tuple(f"ipc://{directory}/rank{rank}" for rank in range(1, tp_size)),
            transfer_reports=f"ipc://{directory}/transfer-reports",
            transfers=tuple(f"ipc://{directory}/transfer{rank}" for rank in range(1, tp_size)),
        )

    @property
    def rendezvous(self) -> str:
        """File through which the ranks' process group meets."""
        return str(Path(self.directory) / "ranks")

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


class Push(Generic[T]):
    """Writing end. `send` never blocks on a reader that is away."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self._socket = context.socket(zmq.PUSH)
        self._socket.set_hwm(0)
        self._socket.linger = 0
        self._socket.connect(address)
        self._encoder = msgspec.msgpack.Encoder()

    def send(self, message: T) -> None:
        self._socket.send(self._encoder.encode(message), zmq.NOBLOCK)

    def close(self, linger_ms: int = 0) -> None:
        self._socket.close(linger_ms)


class Pull(Generic[T]):
    """Reading end. `union` is the msgspec type that every message must match."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, union: Any) -> None:
        self.socket = context.socket(zmq.PULL)
        self.socket.set_hwm(0)
        self.socket.bind(address)
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(union)

    def recv(self) -> T:
        return self._decoder.decode(self.socket.recv())

    def drain(self) -> Iterator[T]:
        """Whatever has arrived, without waiting."""
        while self.socket.poll(0):  # costs a quarter of a recv that finds nothing
            yield self._decoder.decode(self.socket.recv(zmq.NOBLOCK))

    def close(self) -> None:
        self.socket.close(0)
