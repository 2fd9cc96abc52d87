"""The control sockets: one ROUTER that peers dial, one DEALER per peer that we dial, and their ends as events.

Used by one thread. The end of a dialled connection is seen by its socket monitor, that of an accepted one by the next
message to it (a heartbeat at the latest), which a ROUTER cannot route any more.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import msgspec
import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from baton_serving.handoff.rim import PeerAddress

logger = logging.getLogger(__name__)

_MAX_FRAME = 1 << 30
_LINGER_MS = 200  # for the last words on a connection that we end
_ENDS = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
_ENDS |= zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL

_MAPPED = re.compile(r"\[::ffff:([\d.]+)\]")  # how a socket for both families shows an IPv4 address


class CurveKeys(msgspec.Struct, frozen=True):
    """The CURVE key pair (Z85 text) that the workers of a service share. With it, sockets encrypt, and accept only
    peers that have it too. `others` are the public keys that some of them use still, or already."""

    public: str
    secret: str
    others: tuple[str, ...] = ()

    def known(self, public: str) -> bool:
        """Whether this public key is one of the service's."""
        return public in (self.public, *self.others)


class _Door:
    """pyzmq's credentials provider; `keys` may be replaced, asked from the authenticator's thread."""

    def __init__(self, keys: CurveKeys) -> None:
        self.keys = keys

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a client with this public key may connect."""
        return self.keys.known(key.decode())


class ControlSockets:
    """Connections by number: even ones are dialled (the caller's numbers), odd ones accepted."""

    def __init__(
        self,
        bind: str,
        received: Callable[[int, bytes], None],
        ended: Callable[[int], None],
        curve: CurveKeys | None = None,
    ) -> None:
        """Bind to `bind`, such as `tcp://10.0.0.5:0`; port 0 picks a free one, see `endpoint`."""
        self._received = received
        self._ended = ended
        self._curve = curve
        self._bind = bind
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._configure(self._router)
        self._doorkeeper: ThreadAuthenticator | None = None
        self._door: _Door | None = None
        if curve is not None:
            self._door = _Door(curve)
            self._doorkeeper = ThreadAuthenticator(self._context)
            self._doorkeeper.start()
            self._doorkeeper.configure_curve_callback(credentials_provider=self._door)
            self._router.setsockopt(zmq.CURVE_SERVER, 1)
            self._router.setsockopt_string(zmq.CURVE_SECRETKEY, curve.secret)
        self.endpoint = self._listen()
        self._poller.register(self._router, zmq.POLLIN)
        self._accepted: dict[bytes, int] = {}
        self._identities: dict[int, bytes] = {}
        self._dialled: dict[int, zmq.Socket[bytes]] = {}
        self._monitors: dict[int, zmq.Socket[bytes]] = {}
        self._gone: list[int] = []
        self._next = 1

    def renew(self, curve: CurveKeys) -> None:
        """Use these keys for new connections; those that stand go on.

        A socket takes its key when it is bound, so another one is `endpoint` from now on. The former stays open: its
        end would be that of the connections made through it.
        """
        if self._curve is None or self._door is None:
            return
        former, self._curve, self._door.keys = self._curve, curve, curve
        if curve.secret != former.secret:
            self._router.setsockopt_string(zmq.CURVE_SECRETKEY, curve.secret)
            self.endpoint = self._listen()

    def _listen(self) -> str:
        self._router.bind(self._bind)
        return _MAPPED.sub(r"\1", self._router.getsockopt_string(zmq.LAST_ENDPOINT))

    def watch(self, descriptor: int) -> None:
        """Wake `poll` when this file descriptor is readable."""
        self._poller.register(descriptor, zmq.POLLIN)

    def _configure(self, socket: zmq.Socket[bytes]) -> None:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, _MAX_FRAME)
        socket.setsockopt(zmq.IPV6, 1)  # besides IPv4

    def dial(self, connection: int, address: PeerAddress) -> None:
        """Connect once: a connection that ends is not renewed."""
        socket = self._context.socket(zmq.DEALER)
        self._configure(socket)
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        if self._curve is not None and address.public_key:
            socket.setsockopt_string(zmq.CURVE_PUBLICKEY, self._curve.public)
            socket.setsockopt_string(zmq.CURVE_SECRETKEY, self._curve.secret)
            socket.setsockopt_string(zmq.CURVE_SERVERKEY, address.public_key)
        # Not `get_monitor_socket`: it names the pair after a file descriptor, which is soon another socket's.
        watched = f"inproc://end-of-{connection}"
        socket.monitor(watched, _ENDS)
        monitor = self._context.socket(zmq.PAIR)
        monitor.connect(watched)
        self._dialled[connection], self._monitors[connection] = socket, monitor
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(monitor, zmq.POLLIN)
        try:
            socket.connect(address.endpoint)
        except zmq.ZMQError as error:
            logger.warning("cannot dial %s: %s", address.endpoint, error)
            self._gone.append(connection)

    def send(self, connection: int, frame: bytes) -> None:
        try:
            if connection in self._dialled:
                self._dialled[connection].send(frame, zmq.NOBLOCK)
            elif connection in self._identities:
                self._router.send_multipart([self._identities[connection], frame], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            logger.debug("connection %d ended: %s", connection, error)
            self._gone.append(connection)

    def hang_up(self, connection: int) -> None:
        """Close a dialled connection; an accepted one is forgotten, its frames start anew as a stranger's."""
        identity = self._identities.pop(connection, None)
        if identity is not None:
            del self._accepted[identity]
        socket, monitor = self._dialled.pop(connection, None), self._monitors.pop(connection, None)
        if socket is not None and monitor is not None:
            self._poller.unregister(monitor)
            self._poller.unregister(socket)
            socket.disable_monitor()
            monitor.close(0)
            socket.close(_LINGER_MS)

    def poll(self, seconds: float) -> None:
        """Wait for traffic at most so long and pass on everything that is there."""
        ready = dict(self._poller.poll(0 if self._gone else round(seconds * 1000)))
        if self._router in ready:
            self._drain_router()
        for connection, socket in list(self._dialled.items()):
            if socket in ready:
                self._drain(connection, socket)
        for connection, monitor in list(self._monitors.items()):
            if monitor in ready:
                recv_monitor_message(monitor, zmq.NOBLOCK)
                self._gone.append(connection)
        gone, self._gone = self._gone, []
        for connection in dict.fromkeys(gone):
            self._ended(connection)
            self.hang_up(connection)

    def _drain_router(self) -> None:
        for _ in range(256):
            try:
                identity, *frames = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if identity not in self._accepted:
                self._accepted[identity] = self._next
                self._identities[self._next] = identity
                self._next += 2
            self._received(self._accepted[identity], frames[0] if len(frames) == 1 else b"")

    def _drain(self, connection: int, socket: zmq.Socket[bytes]) -> None:
        for _ in range(256):
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._received(connection, frames[0] if len(frames) == 1 else b"")
            if connection not in self._dialled:
                return

    def close(self) -> None:
        for connection in list(self._dialled):
            self.hang_up(connection)
        self._router.close(0)
        if self._doorkeeper is not None:
            self._doorkeeper.stop()
        self._context.term()
