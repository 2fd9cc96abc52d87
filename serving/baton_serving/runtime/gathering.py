"""The process of node 0 that the other nodes of the worker join: it ends when one of them does."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from baton_serving import logs
from baton_serving.config import ServerConfig
from baton_serving.config.check import address
from baton_serving.errors import ConfigError
from baton_serving.handoff.control import ControlSockets
from baton_serving.runtime.curve import node_keys
from baton_serving.runtime.node_messages import (
    BEAT,
    SILENCE,
    Beat,
    End,
    FromNode,
    Join,
    Leave,
    Ready,
    Refused,
    ToNode,
    Welcome,
    shared_flags,
)
from baton_serving.runtime.process import Reporter
from baton_serving.runtime.reachable import host_port

log = logging.getLogger(__name__)

_NAME_SECONDS = 120.0  # until the name of a pod that has just started is known to the cluster's DNS
_END_SECONDS = 3.0  # for the nodes to end together with node 0


def gather_main(config: ServerConfig, reporter: Reporter) -> None:
    """Entry point of the process. Once all nodes have joined it tells its parent the address at which they did, hears
    a `Welcome` for them, and is ready when they are. Ends with status 1 when a node is lost."""
    logs.configure("nodes", config.logging.log_level)
    host, port = address("--dist-init-addr", config.nodes.dist_init_addr or "")
    _Gathering(config, own_address(host), port, reporter).run()


def own_address(host: str, patience: float = _NAME_SECONDS) -> str:
    """The address of this machine that `host` stands for. A name may become known, or be moved here, within `patience`
    seconds (ConfigError)."""
    deadline = time.monotonic() + patience
    while True:
        try:
            family, _, _, _, found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind(found)
            return str(found[0])
        except OSError as error:
            if _is_literal(host) or time.monotonic() > deadline:
                raise ConfigError(
                    f"--dist-init-addr: {host} is no address of this machine, which is node 0 ({error.strerror})"
                ) from error
        time.sleep(1)


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@dataclass
class _Node:
    connection: int
    heard: float = field(default_factory=time.monotonic)
    ready: bool = False


class _Gathering:
    """One thread's loop; nodes by their rank."""

    def __init__(self, config: ServerConfig, host: str, port: int, reporter: Reporter) -> None:
        self._host = host
        self._wanted = range(1, config.nodes.nnodes)
        self._flags = shared_flags(config)
        self._reporter = reporter
        self._nodes: dict[int, _Node] = {}
        self._complete = False
        self._stopping = False
        self._decoder: msgspec.msgpack.Decoder[FromNode] = msgspec.msgpack.Decoder(FromNode)
        self._sockets = ControlSockets(
            f"tcp://{host_port(host, port)}", self._received, self._ended, node_keys(config, host)
        )
        log.info("waiting for nodes 1 to %d at %s", self._wanted[-1], host_port(host, port))

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_stopping", True))
        self._until(lambda: len(self._nodes) == len(self._wanted))
        self._complete = True
        self._reporter.tell(self._host)
        self._until(self._reporter.has_news)
        welcome = self._reporter.hear()
        assert isinstance(welcome, Welcome)
        self._send_all(welcome)
        self._until(lambda: all(node.ready for node in self._nodes.values()))
        self._send_all(Ready())
        self._reporter.ready({})
        self._until(lambda: False)

    def _until(self, condition: Callable[[], bool]) -> None:
        """Turn until it holds; the process ends when it is told to, or a node is lost."""
        while not condition():
            self._turn()
            for rank, node in list(self._nodes.items()):
                if time.monotonic() - node.heard > SILENCE:
                    self._lose(rank, f"was silent for {SILENCE:g} s")
            if self._stopping:
                self._leave()

    def _turn(self) -> None:
        self._send_all(Beat())
        self._sockets.poll(BEAT)

    def _leave(self) -> None:
        """Whoever was lost by now was lost before; the others are told, and given time, to end."""
        self._turn()
        self._send_all(End())
        self._complete = False
        deadline = time.monotonic() + _END_SECONDS
        while self._nodes and time.monotonic() < deadline:
            self._turn()
        self._sockets.close()
        sys.exit(0)

    def _send_all(self, message: ToNode) -> None:
        for node in self._nodes.values():
            self._send(node.connection, message)

    def _send(self, connection: int, message: ToNode) -> None:
        self._sockets.send(connection, msgspec.msgpack.encode(message))

    def _received(self, connection: int, frame: bytes) -> None:
        try:
            message = self._decoder.decode(frame)
        except msgspec.DecodeError:
            return
        if isinstance(message, Join):
            self._join(connection, message)
        for node in self._nodes.values():
            if node.connection == connection:
                node.heard = time.monotonic()
                node.ready = node.ready or isinstance(message, Ready)
                if isinstance(message, Leave):
                    os.kill(os.getppid(), signal.SIGTERM)

    def _join(self, connection: int, join: Join) -> None:
        differing = [name for name, value in self._flags.items() if join.flags.get(name) != value]
        if differing:
            name = differing[0]
            mine, theirs = self._flags[name], join.flags.get(name)
            reason = f"{name} is {mine} on node 0 and {theirs} on node {join.node_rank}: give all nodes the same"
        elif join.node_rank in self._nodes or join.node_rank not in self._wanted:
            reason = f"--node-rank {join.node_rank}: the worker has such a node already"
        else:
            self._nodes[join.node_rank] = _Node(connection)
            log.info("node %d joined", join.node_rank)
            return
        log.warning("node %d refused: %s", join.node_rank, reason)
        self._send(connection, Refused(reason))

    def _ended(self, connection: int) -> None:
        for rank, node in list(self._nodes.items()):
            if node.connection == connection:
                self._lose(rank, "was lost")

    def _lose(self, rank: int, what: str) -> None:
        if self._complete:
            log.error("node %d %s: its own log may say why", rank, what)
            sys.exit(1)
        del self._nodes[rank]
        if not self._stopping:
            log.warning("node %d left before all had come", rank)
