"""The handoff service of a worker: `HandoffCore` on a thread, between the scheduler, the ranks and the peers.

Calls come from the scheduler's thread and return at once; events go back through `events()` after `wake()` was called.
Nothing here blocks the scheduler: look-ups run on a pool of their own, sockets on the service's thread.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from baton_serving.errors import ConfigError, InternalError, InvalidRequest
from baton_serving.handoff.control import ControlSockets, CurveKeys
from baton_serving.handoff.core import HandoffCore, HandoffStats
from baton_serving.handoff.events import HandoffEvent, HandoffFailure
from baton_serving.handoff.layout import PeerDescriptor
from baton_serving.handoff.protocol import Key, PageSpan
from baton_serving.handoff.ranks import RankCommand, RankFailed, RankReport
from baton_serving.handoff.rim import Limits, PeerAddress

logger = logging.getLogger(__name__)

_TURN = 0.05  # seconds between looks at the clock
_REMEMBERED = 1 << 16  # transfer ids: many times what can be open at once

Resolve = Callable[[str], PeerAddress | None]


class HandoffService:
    """One per worker, next to the scheduler of rank 0.

    `blank` describes the worker without engines; `command` passes a `RankCommand` to a rank, in order and without
    blocking; every rank's reports come back through `report`. `resolve` looks a peer key up among registered peers and
    may block. `wake` is called from the service's thread whenever `events()` has something new. `receiver_tp` is the
    tensor parallel size that receivers must have (None: any that fits).
    """

    def __init__(
        self,
        blank: PeerDescriptor,
        command: Callable[[int, RankCommand], None],
        resolve: Resolve,
        wake: Callable[[], None],
        *,
        bind: str = "tcp://127.0.0.1:0",
        limits: Limits | None = None,
        verify: bool = False,
        curve: CurveKeys | None = None,
        receiver_tp: int | None = None,
    ) -> None:
        self._command = command
        self._resolve = resolve
        self._wake_scheduler = wake
        self._backend = blank.backend
        self._core = HandoffCore(blank, self, limits, verify, receiver_tp=receiver_tp)
        self._sockets = ControlSockets(bind, self._frame, self._connection_ended, curve)
        self._inbox: deque[Callable[[float], None]] = deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._sockets.watch(self._bell)
        self._events: deque[HandoffEvent] = deque()
        self._emitted: list[HandoffEvent] = []
        self._stats = HandoffStats()
        self._attempts: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()
        self._tick = 0
        self._busy_until = 0.0
        self._ready = threading.Event()
        self._stopped = False
        self._fault = ""
        self._lookups = ThreadPoolExecutor(2, thread_name_prefix="handoff-lookup")
        self._thread = threading.Thread(target=self._run, name="handoff", daemon=True)

    @property
    def endpoint(self) -> str:
        """The control endpoint that peers dial, to be announced at the bootstrap server."""
        return self._sockets.endpoint

    def start(self, timeout: float = 60.0) -> None:
        """Open the engines on every rank and begin to serve. Raises ConfigError when they do not open."""
        self._inbox.append(lambda now: self._core.start())
        self._thread.start()
        if not self._ready.wait(timeout) or self._core.fencing.error or self._fault:
            reason = self._core.fencing.error or self._fault or f"no answer within {timeout:g} s"
            self.close()
            raise ConfigError(f"the transfer engine does not start: {reason}")

    def close(self) -> None:
        """Stop serving. Transfers under way are not announced as failed.

        Close the ranks' transfers first: the end of the control connections tells peers that nothing is written."""
        self._stopped = True
        self._ring()
        if self._thread.is_alive():
            self._thread.join()
        self._lookups.shutdown(wait=False, cancel_futures=True)
        self._sockets.close()
        with self._lock:
            os.close(self._bell)
            self._bell = -1

    # From the scheduler's thread.

    def beat(self, tick: int, busy: float = 0.0) -> None:
        """The scheduler's loop counter; `busy` are the seconds for which it is about to stand still."""
        self._tick = tick
        self._busy_until = time.monotonic() + busy if busy > 0 else 0.0
        if busy > 0:
            self._ring()

    def renew(self, weights: str, incarnation: str, timeout: float = 5.0) -> None:
        """Serve other weights under another incarnation: no peer of before is a peer any more. No transfer may be open.

        Returns once it is so (InternalError after `timeout` seconds).
        """
        done = threading.Event()

        def renew(now: float) -> None:
            self._core.fencing.renew(weights, incarnation)
            done.set()

        self._put(renew)
        if not done.wait(timeout):
            raise InternalError("the handoff service did not take the new weights over")

    def change_keys(self, curve: CurveKeys, timeout: float = 5.0) -> str:
        """Use these keys for new control connections; the endpoint that peers are to dial from now on.

        InternalError after `timeout` seconds.
        """
        done = threading.Event()

        def renew(now: float) -> None:
            self._sockets.renew(curve)
            done.set()

        self._put(renew)
        if not done.wait(timeout):
            raise InternalError("the handoff service did not take the new keys over")
        return self.endpoint

    def events(self) -> list[HandoffEvent]:
        """What happened since the last call, in order. Raises InternalError when the service or a rank's transfers
        have died: the worker cannot vouch for its pages any more and must stop."""
        if self._fault:
            raise InternalError(self._fault)
        found = []
        while self._events:
            found.append(self._events.popleft())
        return found

    def stats(self) -> HandoffStats:
        return self._stats

    @property
    def transport(self) -> str:
        """The backend, and by what it really moves bytes."""
        return f"{self._backend} {self._stats.transport_used}"

    def open(self, transfer_id: str, attempt: int = 0) -> None:
        """Sending: admit a receiver for this transfer. Raises InvalidRequest for an id that was used before."""
        key = self._first_use(transfer_id, attempt)
        self._put(lambda now: self._core.open(key, now))

    def started(self, transfer_id: str, kv_tokens: int) -> None:
        """Sending: the first chunk is about to be computed."""
        key = self._key(transfer_id)
        self._put(lambda now: self._core.started(key, kv_tokens, now))

    def chunk_ready(self, transfer_id: str, spans: Sequence[PageSpan]) -> None:
        """Sending: these pages are final (and stand on the device). Each page may be offered once."""
        key = self._key(transfer_id)
        self._put(lambda now: self._core.chunk_ready(key, spans, now))

    def finish(self, transfer_id: str, snapshot: bytes) -> None:
        """Sending: every page was offered; `snapshot` is the rest of the request's state."""
        key = self._key(transfer_id)
        self._put(lambda now: self._core.finish(key, snapshot, now))

    def expect(self, transfer_id: str, attempt: int, peer_key: str) -> None:
        """Receiving: ask the peer registered as `peer_key`. Raises InvalidRequest for an id that was used before."""
        key = self._first_use(transfer_id, attempt)
        self._put(lambda now: self._core.expect(key, peer_key, now))

    def announce(self, transfer_id: str, spans: Sequence[PageSpan], prefix_tokens: int) -> None:
        """Receiving: write into these pages. From now on they belong to the sender until an event gives them back."""
        key = self._key(transfer_id)
        self._put(lambda now: self._core.announce(key, spans, prefix_tokens, now))

    def abort(self, transfer_id: str, reason: str = "aborted", code: str = "cancelled") -> None:
        """End the latest attempt, from either side. Answered by `SendFailed` or `ReceiveFailed` unless it is over."""
        key = self._key(transfer_id)
        self._put(lambda now: self._core.abort(key, HandoffFailure(code, reason), now))

    def forsake(self, transfer_id: str, reason: str) -> None:
        """Sending: the receiver is gone. Answered by `SendFailed` unless one has asked for the pages by now."""
        key = self._key(transfer_id)
        self._put(lambda now: self._core.forsake(key, HandoffFailure("unavailable", reason), now))

    def report(self, report: RankReport) -> None:
        """A rank's report; from any thread."""
        if isinstance(report, RankFailed):
            self._fail(f"the transfers of rank {report.rank} failed: {report.reason}")
            return
        self._put(lambda now: self._core.report(report, now))

    def _first_use(self, transfer_id: str, attempt: int) -> Key:
        with self._lock:
            if self._attempts.get(transfer_id, -1) >= attempt:
                raise InvalidRequest(
                    f"transfer id {transfer_id!r} was used before: a retry needs a new id or a higher attempt",
                    "transfer_id",
                )
            self._attempts[transfer_id] = attempt
            self._attempts.move_to_end(transfer_id)
            if len(self._attempts) > _REMEMBERED:
                self._attempts.popitem(last=False)
        return Key(transfer_id, attempt)

    def _key(self, transfer_id: str) -> Key:
        with self._lock:
            return Key(transfer_id, self._attempts.get(transfer_id, 0))

    def _put(self, call: Callable[[float], None]) -> None:
        self._inbox.append(call)
        self._ring()

    def _ring(self) -> None:
        with self._lock:  # a late look-up or report must not ring a descriptor that is another file's by now
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)

    # The service's thread.

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:  # the border of a thread: a fault here must end the worker, not hide in a log
            logger.exception("the handoff service failed")
            self._fail(f"the handoff service failed: {error}")

    def _fail(self, fault: str) -> None:
        self._fault = self._fault or fault
        self._ready.set()
        self._wake_scheduler()

    def _serve(self) -> None:
        last = 0.0
        while not self._stopped:
            self._sockets.poll(_TURN)
            self._hush()
            while self._inbox:
                self._inbox.popleft()(time.monotonic())
            now = time.monotonic()
            if now - last >= _TURN:
                last = now
                self._core.turn(now, self._tick, max(0.0, self._busy_until - now))
            self._publish()
            if self._core.ready or self._core.fencing.error:
                self._ready.set()

    def _publish(self) -> None:
        """Hand over what this turn brought, never before the counters that go with it."""
        self._stats = self._core.stats()
        if self._emitted:
            self._events.extend(self._emitted)
            self._emitted.clear()
            self._wake_scheduler()

    def _hush(self) -> None:
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            return

    def _frame(self, connection: int, frame: bytes) -> None:
        self._core.received(connection, frame, time.monotonic())

    def _connection_ended(self, connection: int) -> None:
        self._core.disconnected(connection, time.monotonic())

    # Effects of the core.

    def dial(self, connection: int, address: PeerAddress) -> None:
        self._sockets.dial(connection, address)

    def send(self, connection: int, frame: bytes) -> None:
        self._sockets.send(connection, frame)

    def hang_up(self, connection: int) -> None:
        self._sockets.hang_up(connection)

    def resolve(self, peer_key: str) -> None:
        self._lookups.submit(self._resolve, peer_key).add_done_callback(lambda future: self._resolved(peer_key, future))

    def _resolved(self, peer_key: str, future: Future[PeerAddress | None]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            logger.warning("looking up peer %r failed: %s", peer_key, error)
        address = None if error is not None else future.result()
        self._put(lambda now: self._core.resolved(peer_key, address, now))

    def command(self, rank: int, command: RankCommand) -> None:
        self._command(rank, command)

    def emit(self, event: HandoffEvent) -> None:
        self._emitted.append(event)
