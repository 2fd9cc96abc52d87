"""The receiving side: drives `RECEIVE_TABLE` for every transfer that this worker asked for."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from baton_serving.handoff.events import Arrived, Begun, HandoffFailure, ReceiveFailed, ReceiveQuiet
from baton_serving.handoff.links import Link, LinkTable
from baton_serving.handoff.machines import RECEIVE_TABLE, ReceiveAction, ReceiveEvent, ReceiveState
from baton_serving.handoff.protocol import (
    Abort,
    Aborted,
    Ack,
    Join,
    Key,
    PageDigest,
    Pages,
    PageSpan,
    Snapshot,
    Started,
    TransferMessage,
)
from baton_serving.handoff.ranks import Digested, DigestPages, PageCopy
from baton_serving.handoff.rim import REMEMBERED, Limits, PeerAddress, Rim

logger = logging.getLogger(__name__)


@dataclass
class Receive:
    """One attempt. `exposed` is the newest epoch of ours that its writer may write into (None: while it may still be
    told of newer ones)."""

    key: Key
    peer_key: str
    state: ReceiveState = ReceiveState.EXPECTING
    deadline: float | None = None
    link: Link | None = None
    joined: bool = False
    spans: list[PageSpan] = field(default_factory=list)
    prefix_tokens: int = 0
    snapshot: Snapshot | None = None
    digesting: set[int] = field(default_factory=set)
    digests: list[PageDigest] = field(default_factory=list)
    exposed: int | None = None
    witnessed: bool = False  # the writer's death was seen, not inferred
    failure: HandoffFailure | None = None
    told_quiet: bool = True
    wants_fence: bool = False
    kv_tokens: int = 0

    @property
    def over(self) -> bool:
        return self.state in (ReceiveState.ARRIVED, ReceiveState.FAILED)

    @property
    def pages(self) -> int:
        return sum(1 for span in self.spans for page in span.pages if page)


class ReceiveSide:
    """All receives."""

    def __init__(self, rim: Rim, links: LinkTable, limits: Limits, ranks: int, verify: bool) -> None:
        self._rim = rim
        self._links = links
        self._limits = limits
        self._ranks = ranks
        self._verify = verify
        self._receives: dict[Key, Receive] = {}
        self._resolving: dict[str, list[Key]] = {}
        self._ended: OrderedDict[Key, None] = OrderedDict()
        self._unsaid: dict[Key, HandoffFailure] = {}  # given up before the join could be sent: the sender must hear it
        self._now = 0.0
        self.bytes_received = 0
        self.pages_received = 0
        self.seconds = 0.0
        self.arrived = 0
        self.failed = 0
        self.mismatches = 0

    def __iter__(self) -> Iterator[Receive]:
        return iter(list(self._receives.values()))

    # Calls of the scheduler.

    def expect(self, key: Key, peer_key: str, now: float) -> None:
        self._now = now
        if key in self._receives or key in self._ended:
            self._links.refuse("duplicate transfer", str(key))
            return
        self._receives[key] = Receive(key, peer_key, deadline=now + 2 * self._limits.connect)
        waiting = self._resolving.setdefault(peer_key, [])
        waiting.append(key)
        if len(waiting) == 1:
            self._rim.resolve(peer_key)

    def announce(self, key: Key, spans: Iterable[PageSpan], prefix_tokens: int, now: float) -> None:
        self._now = now
        receive = self._receives.get(key)
        if receive is not None and receive.state is ReceiveState.BEGUN:
            receive.spans = list(spans)
            receive.prefix_tokens = prefix_tokens
            self._fire(receive, ReceiveEvent.ANNOUNCE)

    def abort(self, key: Key, failure: HandoffFailure, now: float) -> None:
        self._now = now
        receive = self._receives.get(key)
        if receive is not None:
            self._fire(receive, ReceiveEvent.ABORT, failure)

    # Finding the sender.

    def resolved(self, peer_key: str, address: PeerAddress | None, now: float) -> None:
        self._now = now
        for key in self._resolving.pop(peer_key, []):
            receive = self._receives.get(key)
            if receive is None:
                self._part(key, address, now)
                continue
            if address is None:
                text = f"no worker is registered as {peer_key!r}"
                self._fire(receive, ReceiveEvent.REFUSED, HandoffFailure("unavailable", text))
                continue
            if self._links.mine is None:
                text = "the transfer engines are not open yet"
                self._fire(receive, ReceiveEvent.REFUSED, HandoffFailure("unavailable", text))
                continue
            link = self._links.reach(address, now)
            receive.link = link
            if link.up:
                self._join(receive)
            else:
                link.waiting.append(key)

    def up(self, link: Link, now: float) -> None:
        """The peer behind `link` was admitted: send the joins that waited for it."""
        self._now = now
        for key in link.waiting:
            receive = self._receives.get(key)
            if receive is not None:
                self._join(receive)
            elif key in self._unsaid:
                self._links.send(link, self._abort(key, self._unsaid.pop(key)))
        link.waiting.clear()

    def _part(self, key: Key, address: PeerAddress | None, now: float) -> None:
        """Tell a sender that we found too late to leave it alone."""
        failure = self._unsaid.pop(key, None)
        if failure is None or address is None or self._links.mine is None:
            return
        link = self._links.reach(address, now)
        if link.up:
            self._links.send(link, self._abort(key, failure))
        else:
            self._unsaid[key] = failure
            link.waiting.append(key)

    def _join(self, receive: Receive) -> None:
        receive.joined = True
        receive.deadline = self._now + self._limits.transfer
        self._send(receive, Join(incarnation=self._me, key=receive.key))

    # Messages of the sender.

    def receive(self, link: Link, message: TransferMessage, now: float) -> None:
        """`Started`, `Snapshot`, `Abort` or `Aborted`. Refused unless it comes over the link that was joined."""
        self._now = now
        receive = self._receives.get(message.key)
        if receive is None or receive.link is not link:
            late = receive is None and message.key in self._ended
            self._links.refuse("late" if late else "unknown transfer", f"{type(message).__name__} {message.key}")
            return
        match message:
            case Started(kv_tokens=tokens):
                if receive.state is not ReceiveState.EXPECTING:
                    self._links.refuse("out of order", f"Started {receive.key}")
                    return
                receive.kv_tokens = tokens
                self._fire(receive, ReceiveEvent.STARTED)
            case Snapshot():
                if receive.state not in (ReceiveState.RECEIVING, ReceiveState.DRAINING):
                    self._links.refuse("out of order", f"Snapshot {receive.key}")
                    return
                receive.snapshot = message
                self._fire(receive, ReceiveEvent.SNAPSHOT)
            case Abort(reason=reason, code=code):
                self._fire(receive, ReceiveEvent.PEER_ABORT, HandoffFailure(code, reason))
            case Aborted():
                self._aborted(receive, link, message)

    def _aborted(self, receive: Receive, link: Link, message: Aborted) -> None:
        failure = HandoffFailure(message.code, message.reason)
        if message.quiesced:
            self._fire(receive, ReceiveEvent.PEER_QUIET, failure)
            return
        receive.exposed = min(message.epoch, link.told_epoch)
        self._fire(receive, ReceiveEvent.PEER_UNSURE, failure)

    def lost(self, link: Link, reason: str, witnessed: bool, now: float) -> None:
        self._now = now
        for key in link.waiting:
            self._unsaid.pop(key, None)
        for receive in self:
            if receive.link is link:
                if receive.exposed is None:
                    receive.exposed = link.told_epoch
                # Rank 0 holds the connection: its end witnesses the death of a worker of one process only.
                receive.witnessed |= witnessed and link.theirs is not None and len(link.theirs.ranks) == 1
                failure = HandoffFailure("unavailable", f"peer {link.label} lost: {reason}")
                if not link.up:
                    failure = HandoffFailure("unavailable", f"cannot reach {receive.peer_key!r}: {reason}")
                self._fire(receive, ReceiveEvent.PEER_LOST, failure)

    def owes(self, link: Link) -> bool:
        """Whether writes of the peer behind `link` may still land in pages of failed transfers."""
        return any(receive.link is link and receive.state is ReceiveState.DRAINING for receive in self)

    def digested(self, report: Digested, now: float) -> None:
        self._now = now
        receive = self._receives.get(report.key)
        if receive is None or report.rank not in receive.digesting or receive.snapshot is None:
            return
        receive.digesting.discard(report.rank)
        receive.digests.extend(report.digests)
        if receive.digesting:
            return
        difference = _difference(receive.snapshot.digests, receive.digests)
        if difference:
            self.mismatches += 1
            self._fire(receive, ReceiveEvent.MISMATCH, HandoffFailure("internal_error", difference))
        else:
            self._fire(receive, ReceiveEvent.VERIFIED)

    def closed(self, epoch: int, by_close: bool, now: float) -> None:
        """Engines of ours up to `epoch` are closed; `by_close` tells whether that keeps writers out."""
        self._now = now
        for receive in self:
            if receive.state is ReceiveState.DRAINING and receive.exposed is not None:
                fenced = receive.exposed <= epoch if by_close else receive.witnessed
                if fenced:
                    self._fire(receive, ReceiveEvent.FENCED)

    def turn(self, now: float) -> None:
        self._now = now
        for receive in self:
            if receive.deadline is not None and now >= receive.deadline:
                receive.deadline = None
                text = f"the sender did not answer in state {receive.state.name.lower()}"
                self._fire(receive, ReceiveEvent.EXPIRE, HandoffFailure("deadline_exceeded", text))

    @property
    def quarantined_pages(self) -> int:
        """Our pages that a write of a failed transfer may still land on."""
        return sum(receive.pages for receive in self if receive.state is ReceiveState.DRAINING)

    @property
    def open_transfers(self) -> int:
        return len(self._receives)

    # The machine.

    def _fire(self, receive: Receive, event: ReceiveEvent, failure: HandoffFailure | None = None) -> None:
        before = receive.state
        receive.state, actions = RECEIVE_TABLE.step(receive.state, event)
        if failure is not None and receive.failure is None and actions:
            receive.failure = failure
        if receive.state is not before:
            receive.deadline = self._deadline(receive)
        if receive.over:
            self._receives.pop(receive.key, None)
            self._ended[receive.key] = None
            if len(self._ended) > REMEMBERED:
                self._ended.popitem(last=False)
        for action in actions:
            self._act(receive, action)

    def _deadline(self, receive: Receive) -> float | None:
        match receive.state:
            case ReceiveState.RECEIVING:
                return self._now + self._limits.transfer
            case ReceiveState.CHECKING:
                return self._now + self._limits.ack
            case ReceiveState.DRAINING:
                return self._now + self._limits.write + self._limits.grace
        return None

    def _act(self, receive: Receive, action: ReceiveAction) -> None:
        key = receive.key
        match action:
            case ReceiveAction.REPORT_BEGUN:
                self._rim.emit(Begun(key.transfer, key.attempt, receive.kv_tokens))
            case ReceiveAction.SEND_PAGES:
                message = Pages(
                    incarnation=self._me,
                    key=key,
                    spans=receive.spans,
                    prefix_tokens=receive.prefix_tokens,
                    verify=self._verify,
                )
                self._send(receive, message)
            case ReceiveAction.VERIFY:
                self._check(receive)
            case ReceiveAction.SEND_ACK:
                self._send(receive, Ack(incarnation=self._me, key=key))
            case ReceiveAction.SEND_ABORT:
                self._send_abort(receive)
            case ReceiveAction.REPORT_ARRIVED:
                self._report_arrived(receive)
            case ReceiveAction.REPORT_FAILED:
                self.failed += 1
                receive.told_quiet = receive.over
                failure = receive.failure or HandoffFailure("internal_error", "the transfer failed")
                self._rim.emit(ReceiveFailed(key.transfer, key.attempt, failure, receive.told_quiet))
            case ReceiveAction.REPORT_QUIET:
                if not receive.told_quiet:
                    self._rim.emit(ReceiveQuiet(key.transfer, key.attempt))
            case ReceiveAction.FENCE:
                self._want_fence(receive)

    def _want_fence(self, receive: Receive) -> None:
        receive.wants_fence = True
        if receive.exposed is None and receive.link is not None:
            # A sender that does not say how its writes stand cannot be moved to a new engine: part with it.
            self._links.drop(receive.link, "it did not say how the writes of an aborted transfer stand")

    def _check(self, receive: Receive) -> None:
        if not self._verify:
            self._fire(receive, ReceiveEvent.VERIFIED)
            return
        assert receive.link is not None
        copies = [
            PageCopy(
                span.group,
                [span.first + offset for offset, page in enumerate(span.pages) if page],
                [],
                [page for page in span.pages if page],
            )
            for span in receive.spans
        ]
        receive.digesting = set(range(self._ranks))
        for rank in range(self._ranks):
            self._rim.command(rank, DigestPages(receive.link.connection, receive.key, copies))

    def _report_arrived(self, receive: Receive) -> None:
        assert receive.snapshot is not None
        snapshot = receive.snapshot
        self.arrived += 1
        self.bytes_received += snapshot.nbytes
        self.pages_received += receive.pages
        self.seconds += snapshot.seconds
        key, link = receive.key, receive.link
        sender = link.theirs.worker if link is not None and link.theirs is not None else ""
        moved = receive.pages, snapshot.nbytes, snapshot.seconds
        self._rim.emit(Arrived(key.transfer, key.attempt, snapshot.payload, *moved, sender))

    def _send_abort(self, receive: Receive) -> None:
        failure = receive.failure or HandoffFailure("cancelled", "the receiver gave up")
        if receive.joined:
            self._send(receive, self._abort(receive.key, failure))
        elif receive.link is None or self._links.alive(receive.link):
            self._unsaid[receive.key] = failure

    def _abort(self, key: Key, failure: HandoffFailure) -> Abort:
        return Abort(incarnation=self._me, key=key, reason=failure.message, code=failure.code)

    def _send(self, receive: Receive, message: TransferMessage) -> None:
        if receive.link is not None:
            self._links.send(receive.link, message)

    @property
    def _me(self) -> str:
        return self._links.incarnation


def _difference(sent: list[PageDigest], found: list[PageDigest]) -> str:
    """What two sets of page hashes disagree about, or nothing."""
    theirs = {(d.source, d.target, d.group, d.index): d.value for d in sent}
    ours = {(d.source, d.target, d.group, d.index): d.value for d in found}
    for place in sorted(theirs.keys() | ours.keys()):
        if theirs.get(place) != ours.get(place):
            source, target, group, index = place
            return (
                f"page {index} of KV group {group} differs after its move from rank {source} to rank {target}: "
                f"sent hash {theirs.get(place)}, found {ours.get(place)}"
            )
    return ""
