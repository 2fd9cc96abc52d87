"""The process that ties a node above 0 to node 0 of its worker: it ends when node 0 does."""

from __future__ import annotations

import itertools
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable

import msgspec

from baton_serving import logs
from baton_serving.config import ServerConfig
from baton_serving.config.check import address
from baton_serving.errors import ConfigError
from baton_serving.handoff.control import ControlSockets
from baton_serving.handoff.rim import PeerAddress
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

_NODE_0 = 0  # the number of the connection to it
_AGAIN = 1.0  # seconds between two attempts to reach node 0
_TELL = 15  # attempts between two lines about it


def join_main(config: ServerConfig, reporter: Reporter) -> None:
    """Entry point of the process. Tells its parent the `Welcome` of node 0, hears when the ranks are ready, and is
    ready when those of all nodes are. Ends with status 0 when the worker ends as it should, with 1 when node 0 is lost.
    """
    logs.configure("link", config.logging.log_level)
    _Joining(config, reporter).run()


class _Joining:
    """One thread's loop over one connection at a time."""

    def __init__(self, config: ServerConfig, reporter: Reporter) -> None:
        self._config = config
        self._reporter = reporter
        self._host, self._port = address("--dist-init-addr", config.nodes.dist_init_addr or "")
        self._decoder: msgspec.msgpack.Decoder[ToNode] = msgspec.msgpack.Decoder(ToNode)
        self._sockets: ControlSockets
        self._heard = 0.0
        self._lost = False
        self._welcome: Welcome | None = None
        self._begun = False
        self._leaving = False

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self._told_to_stop())
        self._reporter.tell(self._join())
        self._until(self._reporter.has_news)
        self._reporter.hear()
        self._send(Ready())
        self._until(lambda: self._begun)
        self._reporter.ready({})
        self._until(lambda: False)

    def _told_to_stop(self) -> None:
        if not self._begun:
            sys.exit(0)
        self._leaving = True

    def _join(self) -> Welcome:
        """Try until node 0 takes this node in, which it does once all have come."""
        for attempt in itertools.count():
            if self._dial(attempt):
                while not self._lost:
                    self._turn()
                    if self._welcome is not None:
                        return self._welcome
                self._sockets.close()
            if attempt % _TELL == 0:
                log.info("node 0 does not answer at %s:%d yet, or has another key", self._host, self._port)
            time.sleep(_AGAIN)
        raise AssertionError

    def _dial(self, attempt: int) -> bool:
        """Connect with one of the keys in turn, as node 0 may use the next or the former by now."""
        try:
            host = str(socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)[0][4][0])
        except OSError:
            return False
        keys = node_keys(self._config, host)
        known = ("",) if keys is None else (keys.public, *keys.others)
        self._sockets = ControlSockets("inproc://node", self._received, self._ended, keys)
        self._heard, self._lost = time.monotonic(), False
        endpoint = f"tcp://{host_port(host, self._port)}"
        self._sockets.dial(_NODE_0, PeerAddress(endpoint, public_key=known[attempt % len(known)]))
        self._send(Join(self._config.nodes.node_rank, shared_flags(self._config)))
        return True

    def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._turn()
            if self._lost:
                log.error("node 0 was lost: its own log may say why")
                sys.exit(1)

    def _turn(self) -> None:
        self._send(Leave() if self._leaving else Beat())
        self._sockets.poll(BEAT)
        self._lost = self._lost or time.monotonic() - self._heard > SILENCE

    def _send(self, message: FromNode) -> None:
        self._sockets.send(_NODE_0, msgspec.msgpack.encode(message))

    def _received(self, connection: int, frame: bytes) -> None:
        self._heard = time.monotonic()
        message = self._decoder.decode(frame)
        match message:
            case Refused(message=reason):
                raise ConfigError(reason)
            case Welcome():
                self._welcome = message
            case Ready():
                self._begun = True
            case End():
                if self._begun:
                    sys.exit(0)
                self._lost = True

    def _ended(self, connection: int) -> None:
        self._lost = True
