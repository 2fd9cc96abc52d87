"""Mooncake's transfer engine as a backend.

The library does not check the protocol string: rdma without an adapter quietly becomes tcp, so the one in use is found
here. How blocks are submitted and polled is in `mooncake_writes`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import psutil

from baton_serving.handoff.backends.base import BackendError, MemoryRegion, Outcome, Transport
from baton_serving.handoff.backends.devices import rdma_devices
from baton_serving.handoff.backends.mooncake_writes import DONE, NO_TICKET, RUNNING, BatchWrites, BlockWrites, Writes
from baton_serving.handoff.plan import Runs

if TYPE_CHECKING:
    from mooncake.engine import TransferEngine

logger = logging.getLogger(__name__)

_PORT_ATTEMPTS = 8
_FAST_BYTES = 1 << 29
_FAST_POSTS = 8  # some milliseconds' worth, so that the link never waits for somebody to see what ended
_HANDSHAKE_TIMEOUT = 2.0  # seconds
_HANDSHAKE_POLL = 0.001
_CUT_EVERY = 0.1
_WARM_UP_BYTES = 64


def configure_environment(protocol: str, write_timeout: float) -> None:
    """Set what the library reads at import. Values that the deployment set are kept."""
    os.environ.setdefault("MC_LOG_LEVEL", "ERROR")
    os.environ.setdefault("MC_TRANSFER_TIMEOUT", str(max(5, round(write_timeout))))
    os.environ.setdefault("MC_TCP_MAX_QUEUED_TRANSFERS_PER_PEER", "65536")
    if protocol == "nvlink_intra":
        os.environ.setdefault("MC_INTRANODE_NVLINK", "true")  # the name differs between versions
        os.environ.setdefault("MC_INTRA_NVLINK", "true")
    elif protocol == "tcp":
        os.environ.setdefault("MC_FORCE_TCP", "true")  # else an adapter that is there is used


class RetiredPorts:
    """Ports that closed engines of this process listened on: a stale writer may still aim at them."""

    def __init__(self) -> None:
        self._ports: set[int] = set()

    def add(self, ports: set[int]) -> None:
        self._ports |= ports

    def clash(self, ports: set[int]) -> bool:
        return bool(self._ports & ports)


class Handshake:
    """First contact with a peer, on a thread of its own: the library waits up to a minute for a hung peer and lets no
    other write be submitted meanwhile. Writes a few bytes of page 0, which makes the data connections as well."""

    def __init__(self, engine: TransferEngine, session: str, source: int, target: int) -> None:
        self.state = Outcome.PENDING
        self._session = session
        self._over = threading.Event()
        self._late = False
        self._threads = (
            threading.Thread(target=self._run, args=(engine, source, target), name="mooncake-handshake", daemon=True),
            threading.Thread(target=self._watch, name="mooncake-handshake-limit", daemon=True),
        )
        for thread in self._threads:
            thread.start()

    def _run(self, engine: TransferEngine, source: int, target: int) -> None:
        block = engine.transfer_submit_write(self._session, source, target, _WARM_UP_BYTES)
        status = -1 if block in NO_TICKET else engine.transfer_check_status(block)
        while status == RUNNING and not self._late:
            time.sleep(_HANDSHAKE_POLL)
            status = engine.transfer_check_status(block)
        self.state = Outcome.DONE if status == DONE else Outcome.BROKEN
        self._over.set()

    def _watch(self) -> None:
        if not self._over.wait(_HANDSHAKE_TIMEOUT):
            self._end()

    def _end(self) -> None:
        """End the wait for a hung peer. Again and again: the library may come to wait only after the first time."""
        self._late = True
        while not self._over.is_set():
            self._cut()
            self._over.wait(_CUT_EVERY)

    def _cut(self) -> None:
        """Shut down what this process has open towards the peer's handshake port."""
        port = int(self._session.rsplit(":", 1)[1])
        for connection in psutil.Process().net_connections(kind="tcp"):
            if connection.raddr and connection.raddr.port == port and connection.fd >= 0:
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fd)) as waiting:
                    waiting.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Let go of the engine."""
        self._end()
        for thread in self._threads:
            thread.join()


class MooncakeBackend:
    """See `TransferBackend`. `protocol` is auto, tcp, rdma or nvlink_intra; `devices` names InfiniBand devices."""

    max_bytes = 1 << 24  # of tcp; some milliseconds
    max_blocks = 384  # all posts to a peer stay below the 2,048 transfers that its tcp lane queues
    max_posts = 4  # the link has work until somebody sees that one ended

    def __init__(
        self, host: str, retired: RetiredPorts, protocol: str = "auto", devices: str = "", write_timeout: float = 10.0
    ) -> None:
        self._asked = protocol
        self._host = host
        self._retired = retired
        self._handshakes: dict[str, Handshake] = {}
        self._region: MemoryRegion | None = None
        devices = devices or ",".join(rdma_devices())
        wanted = protocol if protocol != "auto" else ("rdma" if devices else "tcp")
        configure_environment(wanted, write_timeout)
        self._engine, self._ports = self._start(wanted, devices)
        self._used = _protocol_in_use(wanted, devices)
        self.fenced_by_close = self._used != "nvlink_intra"
        if self._used != "tcp":
            self.max_bytes = _FAST_BYTES
            self.max_posts = _FAST_POSTS
        self._write_timeout = write_timeout
        self._writes: Writes = BlockWrites(self._engine)

    def _start(self, protocol: str, devices: str) -> tuple[TransferEngine, set[int]]:
        """An engine whose ports no closed engine of this process ever had."""
        try:
            from mooncake.engine import TransferEngine
        except ImportError as error:
            raise BackendError(f"the mooncake package does not import: {error}") from error
        clashing = []  # kept until a clean one is found, so that the ports drawn differ
        for _ in range(_PORT_ATTEMPTS):
            before = _listening()
            engine = TransferEngine()
            if engine.initialize(self._host, "P2PHANDSHAKE", protocol, devices) != 0:
                raise BackendError(f"mooncake cannot start on host {self._host!r} with protocol {protocol!r}")
            ports = (_listening() - before) | {engine.get_rpc_port()}
            if not self._retired.clash(ports):
                return engine, ports
            clashing.append(engine)
        raise BackendError("mooncake found no unused port in 15000-17000")

    def register(self, region: MemoryRegion) -> None:
        code = self._engine.register_memory(region.address, region.nbytes)
        if code != 0:
            raise BackendError(f"mooncake cannot register {region.nbytes} bytes: code {code}")
        self._region = region
        if self._used == "nvlink_intra":
            self._writes = BatchWrites(self._engine, region, self._write_timeout)

    def endpoint(self) -> bytes:
        return f"{self._host}:{self._engine.get_rpc_port()}".encode()

    def transport(self) -> Transport:
        return Transport(asked=self._asked, used=self._used)

    def connect(self, endpoint: bytes, address: int) -> str:
        session = endpoint.decode()
        if session not in self._handshakes:
            assert self._region is not None
            self._handshakes[session] = Handshake(self._engine, session, self._region.address, address)
        return session

    def connected(self, peer: str) -> bool:
        state = self._handshakes[peer].state
        if state is Outcome.BROKEN:
            del self._handshakes[peer]
            raise BackendError(f"mooncake cannot reach {peer}")
        return state is Outcome.DONE

    def disconnect(self, peer: str) -> None:
        """The library keeps its connections until the engine is closed."""
        handshake = self._handshakes.pop(peer, None)
        if handshake is not None:
            handshake.stop()

    def post(self, peer: str, runs: Runs) -> int:
        return self._writes.post(peer, runs)

    def poll(self, ticket: int) -> Outcome:
        return self._writes.poll(ticket)

    def close(self) -> None:
        """Ends every connection. The library's destructor takes 0.1 to 1 s and holds the interpreter lock."""
        for handshake in self._handshakes.values():
            handshake.stop()
        self._handshakes.clear()
        self._writes.close()
        if self._region is not None:
            self._engine.unregister_memory(self._region.address)
            self._region = None
        self._retired.add(self._ports)
        del self._writes, self._engine


def _listening() -> set[int]:
    connections = psutil.Process().net_connections(kind="tcp")
    return {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}


def _protocol_in_use(wanted: str, devices: str) -> str:
    """The library falls back to tcp without saying so; this mirrors the conditions under which it does."""
    from mooncake import engine

    if wanted == "nvlink_intra" and getattr(engine, "SUPPORT_INTRA_NVLINK", False):
        return "nvlink_intra"
    if wanted == "rdma" and devices and rdma_devices():
        return "rdma"
    return "tcp"
