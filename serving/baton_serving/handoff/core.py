"""The handoff of one worker without sockets, threads or clocks of its own: calls, messages and reports go in, effects
go out through the `Rim`. The service drives it with real ones, tests with simulated ones. One thread calls it.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from baton_serving.handoff.events import HandoffFailure
from baton_serving.handoff.fencing import Fencing, Phase
from baton_serving.handoff.layout import PeerDescriptor
from baton_serving.handoff.links import Link, LinkTable
from baton_serving.handoff.protocol import Abort, Aborted, Ack, Join, Key, Pages, PageSpan, Snapshot, Started
from baton_serving.handoff.ranks import Digested, EpochFailed, EpochOpened, EpochsClosed, RankFailed, RankReport, Wrote
from baton_serving.handoff.receiving import ReceiveSide
from baton_serving.handoff.rim import Limits, PeerAddress, Rim
from baton_serving.handoff.sending import SendSide


class HandoffStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the start, and gauges. `refused` counts control messages not acted upon, by reason."""

    bytes_sent: int = 0
    bytes_received: int = 0
    pages_sent: int = 0
    pages_received: int = 0
    receive_seconds: float = 0.0
    delivered: int = 0
    arrived: int = 0
    sends_failed: int = 0
    receives_failed: int = 0
    mismatched_pages: int = 0
    refused: dict[str, int] = {}
    open_sends: int = 0
    open_receives: int = 0
    quarantined_target_pages: int = 0
    quarantined_source_pages: int = 0
    peers: int = 0
    fences: int = 0
    epoch: int = 0
    fencing: bool = False
    transport_asked: str = ""
    transport_used: str = ""
    transport_degraded: bool = False


class HandoffCore:
    """All transfers of one worker, both directions.

    `blank` describes the worker before its engines are open: the ranks' `pages`, `address` and `endpoint` come later.
    """

    def __init__(
        self,
        blank: PeerDescriptor,
        rim: Rim,
        limits: Limits | None = None,
        verify: bool = False,
        *,
        receiver_tp: int | None = None,
    ) -> None:
        limits = limits or Limits()
        ranks = len(blank.ranks)
        self.ready = False
        self.fencing = Fencing(rim, limits, blank, self._on_ready)
        self.links = LinkTable(
            rim, limits, blank.incarnation, ranks, self._link_up, self._link_lost, self._owed, receiver_tp
        )
        self.sends = SendSide(rim, self.links, limits, ranks, lambda: self.fencing.own_epoch)
        self.receives = ReceiveSide(rim, self.links, limits, ranks, verify)
        self.fencing.bind(self.links, self.sends, self.receives)
        self._now = 0.0

    def start(self) -> None:
        """Open the first engines. `ready` once every rank has reported."""
        self.fencing.start()

    def _on_ready(self) -> None:
        self.ready = True

    # From the scheduler.

    def open(self, key: Key, now: float) -> None:
        self.sends.open(key, now)

    def started(self, key: Key, kv_tokens: int, now: float) -> None:
        self.sends.started(key, kv_tokens, now)

    def chunk_ready(self, key: Key, spans: Iterable[PageSpan], now: float) -> None:
        self.sends.chunk_ready(key, spans, now)

    def finish(self, key: Key, snapshot: bytes, now: float) -> None:
        self.sends.finish(key, snapshot, now)
        self._moved()

    def expect(self, key: Key, peer_key: str, now: float) -> None:
        self.receives.expect(key, peer_key, now)

    def announce(self, key: Key, spans: Iterable[PageSpan], prefix_tokens: int, now: float) -> None:
        self.receives.announce(key, spans, prefix_tokens, now)

    def abort(self, key: Key, failure: HandoffFailure, now: float) -> None:
        """End an attempt from this side, whichever side that is."""
        self._now = now
        self.sends.abort(key, failure, now)
        self.receives.abort(key, failure, now)
        self._moved()

    def forsake(self, key: Key, failure: HandoffFailure, now: float) -> None:
        """Sending: whoever was to ask for this attempt is gone. Nothing happens once someone has asked."""
        self._now = now
        self.sends.forsake(key, failure, now)
        self._moved()

    # From the outside.

    def resolved(self, peer_key: str, address: PeerAddress | None, now: float) -> None:
        self._now = now
        self.receives.resolved(peer_key, address, now)

    def received(self, connection: int, frame: bytes, now: float) -> None:
        """A control frame. `connection` is even when we dialled it, odd when the peer did."""
        self._now = now
        got = self.links.receive(connection, frame, now)
        if got is not None:
            link, message = got
            match message:
                case Join():
                    self.sends.join(link, message, now)
                case Pages() | Ack():
                    self.sends.receive(link, message, now)
                case Started() | Snapshot() | Aborted():
                    self.receives.receive(link, message, now)
                case Abort():
                    # The side that joined sends aborts over a link that it dialled.
                    side = self.receives if link.address is not None else self.sends
                    side.receive(link, message, now)
        self._moved()

    def disconnected(self, connection: int, now: float) -> None:
        self._now = now
        self.links.disconnected(connection)
        self._moved()

    def report(self, report: RankReport, now: float) -> None:
        self._now = now
        match report:
            case Wrote():
                self.sends.wrote(report, now)
            case Digested():
                self.receives.digested(report, now)
            case EpochOpened():
                self.fencing.opened(report, now)
            case EpochFailed():
                self.fencing.failed(report, now)
            case EpochsClosed():
                self.fencing.closed(report, now)
            case RankFailed():
                raise AssertionError("the service ends on it")
        self._moved()

    def turn(self, now: float, tick: int, busy: float) -> None:
        """Heartbeats, suspicions, deadlines. Call it every few tens of milliseconds. `tick` and `busy` are the
        scheduler's."""
        self._now = now
        self.links.turn(now, tick, busy)
        self.sends.turn(now)
        self.receives.turn(now)
        self._moved()

    def _moved(self) -> None:
        """What may have become possible after any input."""
        for link in self.links:
            if link.up and link.unacked and not self.sends.writes_to_older(link):
                self.links.acknowledge(link)
        self.fencing.turn(self._now)

    def _link_up(self, link: Link) -> None:
        self.receives.up(link, self._now)

    def _link_lost(self, link: Link, reason: str, witnessed: bool) -> None:
        self.sends.lost(link, reason, self._now)
        self.receives.lost(link, reason, witnessed, self._now)

    def _owed(self, link: Link) -> bool:
        return self.sends.owes(link) or self.receives.owes(link)

    def stats(self) -> HandoffStats:
        sends, receives, fencing = self.sends, self.receives, self.fencing
        return HandoffStats(
            bytes_sent=sends.bytes_sent,
            bytes_received=receives.bytes_received,
            pages_sent=sends.pages_sent,
            pages_received=receives.pages_received,
            receive_seconds=receives.seconds,
            delivered=sends.delivered,
            arrived=receives.arrived,
            sends_failed=sends.failed,
            receives_failed=receives.failed,
            mismatched_pages=receives.mismatches,
            refused=dict(self.links.refused),
            open_sends=sends.open_transfers,
            open_receives=receives.open_transfers,
            quarantined_target_pages=receives.quarantined_pages,
            quarantined_source_pages=sends.quarantined_pages,
            peers=sum(link.up for link in self.links),
            fences=fencing.fences,
            epoch=fencing.own_epoch,
            fencing=fencing.phase is not Phase.IDLE,
            transport_asked=fencing.transport.asked,
            transport_used=fencing.transport.used,
            transport_degraded=fencing.transport.degraded,
        )
