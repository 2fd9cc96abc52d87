"""ZeroMQ sockets of a worker, typed: one msgspec union per socket, msgpack on the wire.

Every queue has one reader, which binds, and writers connect; but between ranks it is rank 0 that binds, so that of
several nodes one listens alone. Queues are unbounded here: admission bounds what may be in flight
(`--max-queued-requests`), and a full socket would block the scheduler loop.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec
import zmq

from baton_serving.errors import ConfigError
from baton_serving.runtime.reachable import host_port

T = TypeVar("T")


class Addresses(msgspec.Struct, frozen=True):
    """Where a worker's processes meet: ipc sockets in a private directory; for ranks on several nodes ports of node 0.

    `rendezvous` is where the ranks' process group meets, as a URL. `key` is the public CURVE key of the ports.
    """

    directory: str
    scheduler: str
    detokenizer: str
    api: str
    reports: str
    commands: tuple[str, ...]
    transfer_reports: str
    transfers: tuple[str, ...]
    rendezvous: str
    key: str = ""

    @classmethod
    def create(cls, tp_size: int) -> Addresses:
        """Make a directory that only this user can enter, and name one socket per queue in it.

        ConfigError where the path would be too long for sockets.
        """
        directory = tempfile.mkdtemp(prefix="baton-")
        if len(f"{directory}/transfer-reports") > zmq.IPC_PATH_MAX_LEN:
            shutil.rmtree(directory)
            raise ConfigError(f"sockets in {tempfile.gettempdir()} have too long a path: set TMPDIR to a shorter one")
        return cls(
            directory=directory,
            scheduler=f"ipc://{directory}/scheduler",
            detokenizer=f"ipc://{directory}/detokenizer",
            api=f"ipc://{directory}/api",
            reports=f"ipc://{directory}/reports",
            commands=tuple(f"ipc://{directory}/rank{rank}" for rank in range(1, tp_size)),
            transfer_reports=f"ipc://{directory}/transfer-reports",
            transfers=tuple(f"ipc://{directory}/transfer{rank}" for rank in range(1, tp_size)),
            rendezvous=f"file://{directory}/ranks",
        )

    def over_nodes(self, host: str) -> Addresses:
        """The ranks meet at TCP ports of `host`, which is rank 0's; port 0 stands for any that is free."""
        free = f"tcp://{host_port(host, 0)}"
        return msgspec.structs.replace(
            self,
            reports=free,
            commands=(free,) * len(self.commands),
            transfer_reports=free,
            transfers=(free,) * len(self.transfers),
            rendezvous=free,
        )

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


class Lock(msgspec.Struct, frozen=True):
    """The CURVE key pair of whoever binds, or its `public` key alone, which only those know who may connect: nobody
    else gets past the greeting (https://rfc.zeromq.org/spec/26). Without keys nothing is encrypted."""

    public: str = ""
    secret: str = ""

    def put_on(self, socket: zmq.Socket[bytes]) -> None:
        if self.secret:
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt_string(zmq.CURVE_SECRETKEY, self.secret)
        elif self.public:
            public, secret = zmq.curve_keypair()
            socket.setsockopt(zmq.CURVE_PUBLICKEY, public)
            socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
            socket.setsockopt_string(zmq.CURVE_SERVERKEY, self.public)


OPEN = Lock()


class Push(Generic[T]):
    """Writing end. `send` never blocks on a reader that is away: one that binds waits for its reader first."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], address: str, lock: Lock = OPEN, *, bind: bool = False
    ) -> None:
        self._socket = context.socket(zmq.PUSH)
        self._socket.set_hwm(0)
        self._socket.linger = 0
        self.address = _attach(self._socket, address, lock, bind=bind)
        self._encoder = msgspec.msgpack.Encoder()

    def has_reader(self, timeout_ms: int) -> bool:
        """Wait until somebody reads, at most so long."""
        return bool(self._socket.poll(timeout_ms, zmq.POLLOUT))

    def send(self, message: T) -> None:
        with contextlib.suppress(zmq.Again):  # the reader is gone, which ends the worker by itself
            self._socket.send(self._encoder.encode(message), zmq.NOBLOCK)

    def close(self, linger_ms: int = 0) -> None:
        self._socket.close(linger_ms)


class Pull(Generic[T]):
    """Reading end. `union` is the msgspec type that every message must match."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], address: str, union: Any, lock: Lock = OPEN, *, bind: bool = True
    ) -> None:
        self.socket = context.socket(zmq.PULL)
        self.socket.set_hwm(0)
        self.address = _attach(self.socket, address, lock, bind=bind)
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(union)

    def recv(self) -> T:
        return self._decoder.decode(self.socket.recv())

    def drain(self) -> Iterator[T]:
        """Whatever has arrived, without waiting."""
        while self.socket.poll(0):  # costs a quarter of a recv that finds nothing
            yield self._decoder.decode(self.socket.recv(zmq.NOBLOCK))

    def close(self) -> None:
        self.socket.close(0)


def _attach(socket: zmq.Socket[bytes], address: str, lock: Lock, *, bind: bool) -> str:
    """Returns where it is: a port is known once it is bound."""
    lock.put_on(socket)
    socket.setsockopt(zmq.IPV6, int("[" in address))
    if not bind:
        socket.connect(address)
        return address
    socket.bind(address)
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)
