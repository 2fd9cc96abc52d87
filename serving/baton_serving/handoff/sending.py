"""The sending side: drives `SEND_TABLE` for every transfer that this worker is the source of."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from baton_serving.handoff.backends.base import Outcome
from baton_serving.handoff.events import Delivered, HandoffFailure, SendFailed, SendQuiet
from baton_serving.handoff.links import Link, LinkTable
from baton_serving.handoff.machines import SEND_TABLE, SendAction, SendEvent, SendState
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
from baton_serving.handoff.ranks import CancelWrites, PageCopy, PostWrites, Wrote
from baton_serving.handoff.rim import REMEMBERED, Limits, Rim

logger = logging.getLogger(__name__)

Failure = TypeVar("Failure", HandoffFailure, HandoffFailure | None)
PageIndex = tuple[int, int]  # (KV group, page index within the request)


@dataclass
class Flight:
    """One batch of writes: the ranks that have not reported its end, and the engines it runs between. `hung`: past its
    deadline."""

    ranks: set[int]
    target_epoch: int
    own_epoch: int
    hung: bool = False


@dataclass
class Send:
    """One attempt. `computed` and `wanted` map a page of the request to a page of ours and of the receiver's; `ready`
    are those in both that are not posted yet, `posted` counts the others."""

    key: Key
    state: SendState = SendState.OPENED
    deadline: float | None = None
    link: Link | None = None
    kv_tokens: int = 0
    computed: dict[PageIndex, int] = field(default_factory=dict)
    wanted: dict[PageIndex, int] = field(default_factory=dict)
    ready: list[PageIndex] = field(default_factory=list)
    posted: int = 0
    verify: bool = False
    snapshot: bytes | None = None
    flights: dict[int, Flight] = field(default_factory=dict)
    batches: int = 0
    broken: bool = False  # some write ended without confirmation: bytes may land later
    target_epoch: int = 0
    failure: HandoffFailure | None = None
    told_quiet: bool = True  # what SendFailed said
    wants_fence: bool = False
    begun: float = 0.0  # when the writes under way began …
    seconds: float = 0.0  # … and for how long writes have been under way before them
    nbytes: int = 0
    digests: list[PageDigest] = field(default_factory=list)

    @property
    def unsure(self) -> bool:
        """Whether nobody can say when the last byte of what was posted lands."""
        return self.broken or any(flight.hung for flight in self.flights.values())

    @property
    def over(self) -> bool:
        return self.state in (SendState.DELIVERED, SendState.FAILED)


class SendSide:
    """All sends. `own_epoch` tells the epoch that a write posted now runs in."""

    def __init__(self, rim: Rim, links: LinkTable, limits: Limits, ranks: int, own_epoch: Callable[[], int]) -> None:
        self._rim = rim
        self._links = links
        self._limits = limits
        self._ranks = ranks
        self._own_epoch = own_epoch
        self._sends: dict[Key, Send] = {}
        self._early: dict[Key, tuple[Link, float]] = {}
        self._ended: OrderedDict[Key, HandoffFailure | None] = OrderedDict()
        self._missed: OrderedDict[Key, HandoffFailure] = OrderedDict()  # receivers that left before we opened
        self._now = 0.0
        self.bytes_sent = 0
        self.pages_sent = 0
        self.delivered = 0
        self.failed = 0

    def __iter__(self) -> Iterator[Send]:
        return iter(list(self._sends.values()))

    # Calls of the scheduler.

    def open(self, key: Key, now: float) -> None:
        self._now = now
        if key in self._sends or key in self._ended:
            self._links.refuse("duplicate transfer", str(key))
            return
        send = self._sends[key] = Send(key)
        missed = self._missed.pop(key, None)
        if missed is not None:
            self._fire(send, SendEvent.PEER_ABORT, missed)
            return
        early = self._early.pop(key, None)
        if early is not None and self._links.alive(early[0]):
            send.link = early[0]
            self._fire(send, SendEvent.JOIN)

    def started(self, key: Key, kv_tokens: int, now: float) -> None:
        send = self._find(key, now)
        if send is not None:
            send.kv_tokens = kv_tokens
            self._fire(send, SendEvent.START)

    def chunk_ready(self, key: Key, spans: Iterable[PageSpan], now: float) -> None:
        send = self._find(key, now)
        if send is None or send.over:
            return
        for span in spans:
            for offset, page in enumerate(span.pages):
                index = (span.group, span.first + offset)
                if page == 0:
                    continue
                if index in send.computed:
                    self._fail(send, "internal_error", f"page {index[1]} of KV group {index[0]} was offered twice")
                    return
                send.computed[index] = page
                if index in send.wanted:
                    send.ready.append(index)
        self._settle(send)

    def finish(self, key: Key, snapshot: bytes, now: float) -> None:
        send = self._find(key, now)
        if send is None or send.over:
            return
        send.snapshot = snapshot
        if send.state in (SendState.OPENED, SendState.RUNNING):
            send.deadline = now + self._limits.join
        self._settle(send)

    def abort(self, key: Key, failure: HandoffFailure, now: float) -> None:
        send = self._find(key, now)
        if send is not None:
            self._fire(send, SendEvent.ABORT, failure)

    def forsake(self, key: Key, failure: HandoffFailure, now: float) -> None:
        """The receiver is gone; without effect once one has joined, whose link tells better."""
        send = self._find(key, now)
        if send is not None and send.link is None:
            self._fire(send, SendEvent.PEER_LOST, failure)

    # Messages of the receiver.

    def join(self, link: Link, message: Join, now: float) -> None:
        self._now = now
        key = message.key
        send = self._sends.get(key)
        if send is not None and send.link is None and not send.over:
            send.link = link
            self._fire(send, SendEvent.JOIN)
        elif send is not None or key in self._early:
            held = send.link if send is not None else self._early[key][0]
            self._links.refuse("duplicate join", str(key))
            if held is not link:
                self._turn_away(link, key, HandoffFailure("unavailable", "another worker joined this transfer"))
        elif key in self._ended or key in self._missed:
            failure = self._ended.get(key) or self._missed.get(key)
            self._turn_away(link, key, failure or HandoffFailure("unavailable", "this transfer is over"))
        else:
            self._early[key] = (link, now + self._limits.early_join)

    def receive(self, link: Link, message: TransferMessage, now: float) -> None:
        """`Pages`, `Ack` or `Abort` of a receiver. Refused unless it comes over the link that joined."""
        self._now = now
        send = self._sends.get(message.key)
        if isinstance(message, Abort) and self._left_early(link, message, send):
            return
        if send is None or send.link is not link:
            late = isinstance(message, Abort) and message.key in self._ended
            self._links.refuse("late" if late else "unknown transfer", f"{type(message).__name__} {message.key}")
            return
        match message:
            case Pages():
                self._pages(send, message)
            case Ack():
                self._fire(send, SendEvent.ACK)
            case Abort(reason=reason, code=code):
                self._fire(send, SendEvent.PEER_ABORT, HandoffFailure(code, reason))

    def _left_early(self, link: Link, message: Abort, send: Send | None) -> bool:
        """A receiver that gives up before we opened the transfer, or before its join: remembered, or acted upon."""
        key, failure = message.key, HandoffFailure(message.code, message.reason)
        if send is not None and send.link is None:
            self._fire(send, SendEvent.PEER_ABORT, failure)
            return True
        early = self._early.get(key)
        if send is not None or key in self._ended or (early is not None and early[0] is not link):
            return False
        self._early.pop(key, None)
        _remember(self._missed, key, failure)
        return True

    def _pages(self, send: Send, message: Pages) -> None:
        if send.state is not SendState.OFFERED:
            self._links.refuse("out of order", f"Pages {send.key}")
            return
        wanted: dict[PageIndex, int] = {}
        complaint = self._complaint(send, message, wanted)
        if complaint:
            self._links.refuse("bad pages", complaint)
            self._fail(send, "internal_error", complaint)
            return
        send.wanted = wanted
        send.ready = [index for index in wanted if index in send.computed]
        send.verify = message.verify
        self._fire(send, SendEvent.PAGES)

    def _complaint(self, send: Send, message: Pages, wanted: dict[PageIndex, int]) -> str:
        """Fills `wanted`; returns what is wrong with the announced pages, if anything."""
        assert send.link is not None
        assert send.link.theirs is not None
        theirs = send.link.theirs
        limit = min(rank.pages for rank in theirs.ranks)
        seen: set[int] = set()
        for span in message.spans:
            if not 0 <= span.group < len(theirs.layout.groups) or span.first < 0:
                return f"announced pages name KV group {span.group} from index {span.first}"
            for offset, page in enumerate(span.pages):
                index = (span.group, span.first + offset)
                if page == 0:
                    continue
                if not 0 < page < limit or index in wanted or page in seen:
                    return f"announced page {page} for index {index[1]} of group {index[0]} is out of range or repeated"
                wanted[index] = page
                seen.add(page)
        return ""

    # Reports of the ranks.

    def wrote(self, report: Wrote, now: float) -> None:
        self._now = now
        send = self._sends.get(report.key)
        flight = send.flights.get(report.batch) if send is not None else None
        if send is None or flight is None or report.rank not in flight.ranks:
            return
        if report.outcome is Outcome.HUNG:
            flight.hung = True
        else:
            flight.ranks.discard(report.rank)
            send.nbytes += report.nbytes
            send.digests.extend(report.digests)
            if not flight.ranks:
                del send.flights[report.batch]
                if not send.flights:
                    send.seconds += now - send.begun
        if report.outcome is not Outcome.DONE:
            send.broken |= report.outcome is Outcome.BROKEN
            text = f"a write to {send.link.label if send.link else 'the receiver'} failed: {report.reason}"
            self._fire(send, SendEvent.WRITE_FAILED, HandoffFailure("unavailable", text))
        self._settle(send)

    def lost(self, link: Link, reason: str, now: float) -> None:
        self._now = now
        for key in [key for key, (held, _) in self._early.items() if held is link]:
            del self._early[key]
            _remember(self._missed, key, HandoffFailure("unavailable", f"peer {link.label} lost: {reason}"))
        for send in self:
            if send.link is link:
                text = f"peer {link.label} lost: {reason}"
                self._fire(send, SendEvent.PEER_LOST, HandoffFailure("unavailable", text))

    def owes(self, link: Link) -> bool:
        """Whether writes of failed transfers are under way to the peer behind `link`."""
        return any(send.link is link and send.state is SendState.QUIESCING for send in self)

    def writes_to_older(self, link: Link) -> bool:
        """Whether a write that matters is under way into an engine that the peer behind `link` has replaced."""
        assert link.theirs is not None
        newest = link.theirs.epoch
        return any(
            flight.target_epoch < newest
            for send in self
            if send.link is link and send.state is SendState.WRITING
            for flight in send.flights.values()
        )

    def writes_from(self, epoch: int) -> bool:
        """Whether a write of a transfer that is not failing runs in an engine of ours up to `epoch`."""
        return any(
            flight.own_epoch <= epoch
            for send in self
            if send.state is SendState.WRITING
            for flight in send.flights.values()
        )

    def turn(self, now: float) -> None:
        self._now = now
        for key, (link, until) in list(self._early.items()):
            if now >= until:
                del self._early[key]
                text = f"the sender heard nothing of this transfer for {self._limits.early_join:g} s"
                _remember(self._missed, key, HandoffFailure("unavailable", text))
                self._turn_away(link, key, HandoffFailure("unavailable", text))
        for send in self:
            if send.deadline is not None and now >= send.deadline:
                send.deadline = None
                text = f"the receiver did not answer in state {send.state.name.lower()}"
                self._fire(send, SendEvent.EXPIRE, HandoffFailure("deadline_exceeded", text))

    @property
    def quarantined_pages(self) -> int:
        """Our pages that a write of a failed transfer may still be reading."""
        return sum(len(send.computed) for send in self if send.state is SendState.QUIESCING)

    @property
    def open_transfers(self) -> int:
        return len(self._sends) + len(self._early)

    # The machine.

    def _find(self, key: Key, now: float) -> Send | None:
        self._now = now
        return self._sends.get(key)

    def _fail(self, send: Send, code: str, text: str) -> None:
        logger.error("transfer %s: %s", send.key, text)
        self._fire(send, SendEvent.ABORT, HandoffFailure(code, text))

    def _fire(self, send: Send, event: SendEvent, failure: HandoffFailure | None = None) -> None:
        before = send.state
        send.state, actions = SEND_TABLE.step(send.state, event)
        if failure is not None and send.failure is None and actions:
            send.failure = failure
        if send.state is not before:
            send.deadline = self._deadline(send)
        for action in actions:
            self._act(send, action)
        if send.over:
            self._sends.pop(send.key, None)
            _remember(self._ended, send.key, send.failure)
        elif send.state is not before:
            self._settle(send)

    def _deadline(self, send: Send) -> float | None:
        limits = self._limits
        match send.state:
            case SendState.RUNNING if send.snapshot is not None:
                return self._now + limits.join
            case SendState.OFFERED:
                return self._now + limits.pages
            case SendState.CONFIRMING:
                return self._now + limits.ack
            case SendState.QUIESCING:
                return self._now + limits.write + limits.grace
        return None

    def _settle(self, send: Send) -> None:
        """Turn what the data says into events."""
        if send.state is SendState.WRITING:
            if send.ready:
                self._post(send)
            if send.snapshot is not None and send.posted < len(send.wanted):
                group, index = min(send.wanted.keys() - send.computed.keys())
                self._fail(send, "internal_error", f"page {index} of KV group {group} was asked for but not computed")
            elif send.snapshot is not None and not send.flights:
                self._fire(send, SendEvent.COMPLETE)
        elif send.state is SendState.QUIESCING and not send.flights:
            self._fire(send, SendEvent.QUIET)

    def _post(self, send: Send) -> None:
        """Write everything that is ready, as one batch on every rank."""
        assert send.link is not None
        assert send.link.theirs is not None
        if not send.flights:
            send.begun = self._now
        copies = []
        for group in sorted({group for group, _ in send.ready}):
            indices = sorted(index for held, index in send.ready if held == group)
            source = [send.computed[group, index] for index in indices]
            copies.append(PageCopy(group, indices, source, [send.wanted[group, index] for index in indices]))
        send.posted += len(send.ready)
        send.ready = []
        batch = send.batches
        send.batches += 1
        send.target_epoch = max(send.target_epoch, send.link.theirs.epoch)
        send.flights[batch] = Flight(set(range(self._ranks)), send.link.theirs.epoch, self._own_epoch())
        for rank in range(self._ranks):
            self._rim.command(rank, PostWrites(send.link.connection, send.key, batch, copies, send.verify))

    def _act(self, send: Send, action: SendAction) -> None:
        match action:
            case SendAction.SEND_STARTED:
                message = Started(incarnation=self._me, key=send.key, kv_tokens=send.kv_tokens)
                self._send(send, message)
            case SendAction.POST:
                pass  # `_settle` posts whatever is ready, now and after every chunk
            case SendAction.SEND_SNAPSHOT:
                self._send_snapshot(send)
            case SendAction.TELL_PEER:
                self._tell_peer(send)
            case SendAction.REPORT_DELIVERED:
                self.delivered += 1
                self.bytes_sent += send.nbytes
                self.pages_sent += len(send.wanted)
                self._rim.emit(Delivered(send.key.transfer, send.key.attempt, send.nbytes, send.seconds))
            case SendAction.REPORT_FAILED:
                self._report_failed(send)
            case SendAction.REPORT_QUIET:
                if not send.told_quiet:
                    self._rim.emit(SendQuiet(send.key.transfer, send.key.attempt))
            case SendAction.FENCE:
                if send.link is not None and not self._links.alive(send.link) and send.deadline is not None:
                    send.deadline = min(send.deadline, self._now + self._limits.grace)
                else:
                    send.wants_fence = True

    def _report_failed(self, send: Send) -> None:
        self.failed += 1
        send.told_quiet = not send.flights
        if send.flights:
            for rank in range(self._ranks):
                self._rim.command(rank, CancelWrites(send.key))
        failure = send.failure or HandoffFailure("internal_error", "the transfer failed")
        self._rim.emit(SendFailed(send.key.transfer, send.key.attempt, failure, send.told_quiet))

    def _send_snapshot(self, send: Send) -> None:
        assert send.snapshot is not None
        message = Snapshot(
            incarnation=self._me,
            key=send.key,
            payload=send.snapshot,
            pages=len(send.wanted),
            nbytes=send.nbytes,
            seconds=send.seconds,
            digests=send.digests,
        )
        self._send(send, message)

    def _tell_peer(self, send: Send) -> None:
        failure = send.failure or HandoffFailure("unavailable", "the sender gave up")
        if send.flights and not send.unsure:
            message: TransferMessage = Abort(
                incarnation=self._me, key=send.key, reason=failure.message, code=failure.code
            )
        else:
            message = self._aborted(send.key, failure, quiesced=not send.unsure, epoch=send.target_epoch)
        self._send(send, message)

    def _turn_away(self, link: Link, key: Key, failure: HandoffFailure) -> None:
        self._links.send(link, self._aborted(key, failure, quiesced=True, epoch=0))

    def _aborted(self, key: Key, failure: HandoffFailure, quiesced: bool, epoch: int) -> Aborted:
        return Aborted(
            incarnation=self._me,
            key=key,
            quiesced=quiesced,
            epoch=epoch,
            reason=failure.message,
            code=failure.code,
        )

    def _send(self, send: Send, message: TransferMessage) -> None:
        if send.link is not None:
            self._links.send(send.link, message)

    @property
    def _me(self) -> str:
        return self._links.incarnation


def _remember(memory: OrderedDict[Key, Failure], key: Key, failure: Failure) -> None:
    memory[key] = failure
    if len(memory) > REMEMBERED:
        memory.popitem(last=False)
