"""Links to peers: the handshake, who is admitted, and whether a peer is alive where it matters.

A link is one control connection. It lives from the first `Hello` until the connection ends, the peer falls silent or
its scheduler stands still; it never comes back, a new connection makes a new link. Peers are told apart by incarnation.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from baton_serving.handoff.layout import PeerDescriptor, PeerRefused, check_compatible, check_receiver
from baton_serving.handoff.protocol import (
    Aborted,
    Control,
    Heartbeat,
    Hello,
    HelloAck,
    HelloRefused,
    Key,
    Malformed,
    Message,
    Snapshot,
    decode,
    encode,
)
from baton_serving.handoff.ranks import Introduce, Part
from baton_serving.handoff.rim import Limits, PeerAddress, Rim

logger = logging.getLogger(__name__)


@dataclass
class Link:
    """`told_epoch` is the newest engine epoch of ours that the peer may write into, `acked_epoch` the oldest."""

    connection: int
    heard: float
    address: PeerAddress | None = None  # None: the peer dialled us
    theirs: PeerDescriptor | None = None
    tick: int = -1
    ticked: float = 0.0
    busy_until: float = 0.0
    told_epoch: int = 0
    acked_epoch: int = 0
    unacked: bool = False  # they told us of a new epoch; the answer waits for our writes into the old one
    waiting: list[Key] = field(default_factory=list)  # joins to send once admitted

    @property
    def up(self) -> bool:
        return self.theirs is not None

    @property
    def label(self) -> str:
        if self.theirs is not None:
            return self.theirs.label
        return self.address.endpoint if self.address else "a peer that has not introduced itself"


class LinkTable:
    """All links. `on_up` and `on_lost` are told of admissions and ends (`witnessed`: the connection itself ended);
    `owed` tells whether any page is in quarantine on account of a link. `receiver_tp` is the tensor parallel size that
    peers must have who ask for pages (None: any that fits)."""

    def __init__(
        self,
        rim: Rim,
        limits: Limits,
        incarnation: str,
        ranks: int,
        on_up: Callable[[Link], None],
        on_lost: Callable[[Link, str, bool], None],
        owed: Callable[[Link], bool],
        receiver_tp: int | None = None,
    ) -> None:
        self._rim = rim
        self._limits = limits
        self.incarnation = incarnation
        self._ranks = ranks
        self._on_up = on_up
        self._on_lost = on_lost
        self._owed = owed
        self._receiver_tp = receiver_tp
        self._links: dict[int, Link] = {}
        self._condemned: dict[int, Link] = {}
        self.fenced_by_close = True
        self._next = 1
        self._last_tick: float | None = None
        self._last_beat = float("-inf")
        self.mine: PeerDescriptor | None = None
        self.refused: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Link]:
        return iter(list(self._links.values()))

    def get(self, connection: int) -> Link | None:
        return self._links.get(connection)

    def alive(self, link: Link) -> bool:
        return self._links.get(link.connection) is link

    def refuse(self, reason: str, detail: str = "") -> None:
        """Count a message that is not acted upon."""
        self.refused[reason] += 1
        logger.debug("handoff message refused: %s %s", reason, detail)

    def send(self, link: Link, message: Control) -> None:
        if self.alive(link) or self._condemned.get(link.connection) is link:
            self._rim.send(link.connection, encode(message))

    def reach(self, address: PeerAddress, now: float) -> Link:
        """The link that we dialled to this address, new if there is none to that very worker."""
        assert self.mine is not None
        for link in self:
            if link.address is None:
                continue
            known = link.address.incarnation if link.theirs is None else link.theirs.incarnation
            if known and known == address.incarnation:
                return link  # whatever its address: that changes with its keys
            if link.address.endpoint != address.endpoint:
                continue
            if not known or not address.incarnation:
                return link
            self.drop(link, "another worker is registered at its address")
        link = Link(self._next * 2, heard=now, address=address)  # even numbers: dialled; the rim gives odd ones
        self._next += 1
        self._links[link.connection] = link
        self._rim.dial(link.connection, address)
        self._tell(link)
        link.acked_epoch = link.told_epoch
        return link

    def _tell(self, link: Link) -> None:
        assert self.mine is not None
        link.told_epoch = self.mine.epoch
        self.send(link, Hello(incarnation=self.incarnation, descriptor=self.mine))

    def redescribe(self, mine: PeerDescriptor) -> None:
        """Use a new descriptor of ours from now on and tell every admitted peer."""
        self.mine = mine
        for link in self:
            if link.up:
                self._introduce(link)
                self._tell(link)

    def renew(self, mine: PeerDescriptor | None, incarnation: str) -> None:
        """Be another worker from now on: every link ends, and peers must meet this one anew."""
        for link in self:
            self.drop(link, "this worker serves other weights now")
        self.incarnation = incarnation
        self.mine = mine

    def receive(self, connection: int, frame: bytes, now: float) -> tuple[Link, Message] | None:
        """The message and its link when it is about transfers; everything else is dealt with here."""
        got = self._take(connection, frame, now)
        if connection not in self._links and connection not in self._condemned:
            self._rim.hang_up(connection)  # nothing is remembered of strangers
        return got

    def _take(self, connection: int, frame: bytes, now: float) -> tuple[Link, Message] | None:
        try:
            message = decode(frame)
        except Malformed as error:
            self.refuse("malformed", str(error))
            return None
        if connection in self._condemned:
            return self._last_words(self._condemned[connection], message)
        link = self._links.get(connection)
        expected = Hello if link is None else HelloAck | HelloRefused if link.theirs is None else Message
        if not isinstance(message, expected):
            self.refuse("stranger", type(message).__name__)
            if link is None and not isinstance(message, HelloRefused):
                self._turn_away(connection, "this link is not open")
            return None
        if link is not None and link.theirs is not None and message.incarnation != link.theirs.incarnation:
            self.refuse("stale incarnation", type(message).__name__)
            return None
        match message:
            case Hello():
                self._greet(connection, link, message, now)
                return None
            case HelloAck() | HelloRefused():
                assert link is not None
                self._answered(link, message, now)
                return None
        assert link is not None
        link.heard = now
        if isinstance(message, Heartbeat):
            self._beat(link, message, now)
            return None
        return link, message

    def _last_words(self, link: Link, message: Message) -> tuple[Link, Message] | None:
        """Of a peer that was given up, only the proof counts that it has become quiet."""
        assert link.theirs is not None
        if isinstance(message, Aborted | Snapshot) and message.incarnation == link.theirs.incarnation:
            return link, message
        self.refuse("given up", type(message).__name__)
        return None

    def _greet(self, connection: int, link: Link | None, message: Hello, now: float) -> None:
        theirs = message.descriptor
        if self.mine is None:
            self.refuse("not ready")
            return
        if message.incarnation != theirs.incarnation or (link is not None and not self._succeeds(link, theirs)):
            self.refuse("stale incarnation", "Hello")
            return
        try:
            check_compatible(self.mine, theirs)
            if link is None and self._receiver_tp is not None:
                check_receiver(self.mine, theirs, self._receiver_tp)
        except PeerRefused as error:
            self.refuse("layout", str(error))
            logger.warning("peer refused: %s", error)
            self._turn_away(connection, str(error))
            return
        new = link is None
        if link is None:
            link = self._links[connection] = Link(connection, heard=now, ticked=now)
            link.told_epoch = link.acked_epoch = self.mine.epoch
        link.theirs, link.heard, link.unacked = theirs, now, True
        self._introduce(link)
        if new:
            self.acknowledge(link)
            self._on_up(link)

    def _turn_away(self, connection: int, reason: str) -> None:
        self._rim.send(connection, encode(HelloRefused(incarnation=self.incarnation, reason=reason)))

    def _succeeds(self, link: Link, theirs: PeerDescriptor) -> bool:
        """A second Hello on a link may only bring a higher epoch of the same worker."""
        return link.theirs is not None and (
            theirs.incarnation == link.theirs.incarnation and theirs.epoch > link.theirs.epoch
        )

    def acknowledge(self, link: Link) -> None:
        """Answer the peer's latest Hello: our writes go to its newest engine, none is left to an older one."""
        assert self.mine is not None
        assert link.theirs is not None
        link.unacked = False
        ack = HelloAck(incarnation=self.incarnation, descriptor=self.mine, epoch=link.theirs.epoch)
        self.send(link, ack)

    def _answered(self, link: Link, message: HelloAck | HelloRefused, now: float) -> None:
        if isinstance(message, HelloRefused):
            self.drop(link, message.reason)
            return
        assert self.mine is not None
        theirs, new = message.descriptor, link.theirs is None
        if new and link.address is not None:
            wanted = link.address.incarnation
            if message.incarnation != theirs.incarnation or (wanted and theirs.incarnation != wanted):
                self.refuse("stale incarnation", "HelloAck")
                self.drop(link, f"{theirs.label} answered in place of the registered worker")
                return
            try:
                check_compatible(self.mine, theirs)
            except PeerRefused as error:
                self.refuse("layout", str(error))
                self.drop(link, str(error))
                return
            link.theirs, link.ticked = theirs, now
            self._introduce(link)
        if not self.mine.epoch >= message.epoch >= link.acked_epoch:
            self.refuse("stale epoch")
            return
        link.heard, link.acked_epoch = now, message.epoch
        if new:
            if link.told_epoch < self.mine.epoch:
                self._tell(link)
            self._on_up(link)

    def _introduce(self, link: Link) -> None:
        assert self.mine is not None
        assert link.theirs is not None
        for rank in range(self._ranks):
            self._rim.command(rank, Introduce(link.connection, self.mine, link.theirs))

    def _beat(self, link: Link, message: Heartbeat, now: float) -> None:
        if message.tick != link.tick:
            link.tick, link.ticked = message.tick, now
        link.busy_until = now + message.busy if message.busy > 0 else 0.0

    def disconnected(self, connection: int) -> None:
        """The connection ended: the rim saw it."""
        link = self._links.get(connection)
        condemned = self._condemned.pop(connection, None)
        if link is not None:
            self.drop(link, "its connection ended", witnessed=True)
        elif condemned is not None:
            self._on_lost(condemned, "its connection ended", True)

    def drop(self, link: Link, reason: str, witnessed: bool = False) -> None:
        """End a link for good. Idempotent.

        Where closing our engine does not keep a writer out, the connection is kept open while anything is in
        quarantine: its end, seen by this very process, is the witness that the writer is dead or has nothing under way.
        """
        if self._links.pop(link.connection, None) is None:
            return
        if link.up:
            logger.warning("peer %s lost: %s", link.label, reason)
        if not witnessed:
            self._turn_away(link.connection, f"given up: {reason}")
        if witnessed or self.fenced_by_close or not link.up:
            self._rim.hang_up(link.connection)
        else:
            self._condemned[link.connection] = link
        self._on_lost(link, reason, witnessed)
        for rank in range(self._ranks):
            self._rim.command(rank, Part(link.connection))

    def turn(self, now: float, tick: int, busy: float) -> None:
        """Send heartbeats that are due and drop peers that are not alive. Call it a few times per heartbeat."""
        self._forgive_own_pause(now)
        if self.mine is not None and now - self._last_beat >= self._limits.heartbeat:
            self._last_beat = now
            for link in self:
                if link.up:
                    self.send(link, Heartbeat(incarnation=self.incarnation, tick=tick, busy=busy))
            self._visit_condemned()
        for link in self:
            reason = self._suspicion(link, now)
            if reason:
                self.drop(link, reason)

    def _visit_condemned(self) -> None:
        for link in list(self._condemned.values()):
            if self._owed(link):
                self._turn_away(link.connection, "given up")  # a dead peer shows itself when it is sent to
            else:
                del self._condemned[link.connection]
                self._rim.hang_up(link.connection)

    def _suspicion(self, link: Link, now: float) -> str:
        if not link.up:
            silent = now - link.heard > self._limits.connect
            return f"no answer within {self._limits.connect:g} s" if silent else ""
        if now - link.heard > self._limits.lease:
            return f"no heartbeat for {self._limits.lease:g} s"
        if now - max(link.ticked, link.busy_until) > self._limits.stall:
            return f"its scheduler stood still for {self._limits.stall:g} s"
        return ""

    def _forgive_own_pause(self, now: float) -> None:
        """Silence while this process itself was stopped is not the peers' fault."""
        pause = 0.0 if self._last_tick is None else now - self._last_tick
        self._last_tick = now
        if pause > self._limits.lease / 3:
            for link in self:
                link.heard += pause
                link.ticked += pause
