"""Engine epochs: how writers that do not answer are kept out of our memory, and our own stuck writes are ended.

A fence opens a second engine over the same memory on every rank, tells healthy peers, waits (bounded) until their
writes and ours have moved over, and closes the older engines. After that nobody who was told of the
closed epochs alone can reach a page. Timers bound the waiting; only the closing frees.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum

import msgspec

from baton_serving.handoff.backends.base import Transport
from baton_serving.handoff.layout import PeerDescriptor
from baton_serving.handoff.links import LinkTable
from baton_serving.handoff.ranks import CloseEpochs, EpochFailed, EpochOpened, EpochsClosed, OpenEpoch
from baton_serving.handoff.receiving import ReceiveSide
from baton_serving.handoff.rim import Limits, Rim
from baton_serving.handoff.sending import SendSide

logger = logging.getLogger(__name__)


class Phase(Enum):
    IDLE = "idle"
    OPENING = "opening"  # ranks open the next engine
    MOVING = "moving"  # healthy peers and our own writes move over
    CLOSING = "closing"  # ranks close the older engines


class Fencing:
    """The epochs of this worker. `own_epoch` is the one that writes posted now run in (0: none yet)."""

    def __init__(self, rim: Rim, limits: Limits, blank: PeerDescriptor, on_ready: Callable[[], None]) -> None:
        self._rim = rim
        self._limits = limits
        self._blank = blank
        self._on_ready = on_ready
        self._ranks = len(blank.ranks)
        self._opened: dict[int, EpochOpened] = {}
        self._waiting: set[int] = set()
        self._deadline = 0.0
        self.phase = Phase.IDLE
        self.own_epoch = 0
        self.closed_epoch = 0
        self.fences = 0
        self.transport = Transport(asked="", used="")
        self.by_close = True
        self.error = ""  # why the very first engines did not open

    def bind(self, links: LinkTable, sends: SendSide, receives: ReceiveSide) -> None:
        self._links = links
        self._sends = sends
        self._receives = receives

    def start(self) -> None:
        """Open the next epoch on every rank."""
        self.phase = Phase.OPENING
        self.own_epoch += 1
        self._opened.clear()
        for rank in range(self._ranks):
            self._rim.command(rank, OpenEpoch(self.own_epoch))

    def renew(self, weights: str, incarnation: str) -> None:
        """Describe this worker anew, over the same engines, and have every peer meet it again."""
        identity = {"weights": weights, "incarnation": incarnation}
        self._blank = msgspec.structs.replace(self._blank, **identity)
        mine = self._links.mine
        self._links.renew(None if mine is None else msgspec.structs.replace(mine, **identity), incarnation)

    def opened(self, report: EpochOpened, now: float) -> None:
        if self.phase is not Phase.OPENING or report.epoch != self.own_epoch:
            return
        self._opened[report.rank] = report
        if len(self._opened) < self._ranks:
            return
        reports = [self._opened[rank] for rank in range(self._ranks)]
        self._note_transport(reports)
        descriptor = msgspec.structs.replace(
            self._blank, epoch=self.own_epoch, ranks=tuple(report.descriptor for report in reports)
        )
        first = self._links.mine is None
        self._links.redescribe(descriptor)
        if first:
            self.phase = Phase.IDLE
            self._on_ready()
            return
        self.phase = Phase.MOVING
        self._deadline = now + self._limits.move
        self.turn(now)

    def failed(self, report: EpochFailed, now: float) -> None:
        """A rank could not open an engine. The old ones stay; the next turn that needs a fence tries again."""
        if self.phase is Phase.OPENING and report.epoch == self.own_epoch:
            logger.error("rank %d cannot open transfer engine %d: %s", report.rank, report.epoch, report.reason)
            self.phase = Phase.IDLE
            self._deadline = now + self._limits.grace
            if self._links.mine is None:
                self.error = report.reason

    def closed(self, report: EpochsClosed, now: float) -> None:
        if self.phase is not Phase.CLOSING:
            return
        self._waiting.discard(report.rank)
        if self._waiting:
            return
        self.phase = Phase.IDLE
        self.closed_epoch = self.own_epoch - 1
        self.fences += 1
        self._receives.closed(self.closed_epoch, self.by_close, now)

    def turn(self, now: float) -> None:
        """Start a fence when a transfer asks for one, and move a running one along."""
        self._receives.closed(self.closed_epoch, self.by_close, now)
        if self.phase is Phase.IDLE and self._links.mine is not None and now >= self._deadline and self._needed():
            logger.warning("fencing: opening transfer engine %d", self.own_epoch + 1)
            self.start()
        elif self.phase is Phase.MOVING:
            self._move(now)

    def _needed(self) -> bool:
        if not self.by_close:
            return False  # closing an engine keeps nobody out: only the death of the writer does
        return any(send.wants_fence for send in self._sends) or any(
            receive.wants_fence and receive.exposed is not None for receive in self._receives
        )

    def _move(self, now: float) -> None:
        laggards = [link for link in self._links if link.up and link.acked_epoch < self.own_epoch]
        ours = self._sends.writes_from(self.own_epoch - 1)
        if (laggards or ours) and now < self._deadline:
            return
        self.phase = Phase.CLOSING
        self._waiting = set(range(self._ranks))
        for rank in range(self._ranks):
            self._rim.command(rank, CloseEpochs(self.own_epoch - 1))

    def _note_transport(self, reports: list[EpochOpened]) -> None:
        self.by_close = self._links.fenced_by_close = all(report.fenced_by_close for report in reports)
        transport = next((report.transport for report in reports if report.transport.degraded), reports[0].transport)
        if transport.degraded and transport != self.transport:
            logger.warning(
                "transfer transport %s was asked for, but %s is in use: expect slower handoffs",
                transport.asked,
                transport.used,
            )
        self.transport = transport
