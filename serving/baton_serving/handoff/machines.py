"""The two state machines of a handoff, as tables: one of the side that sends a request, one of the side that receives.

One machine per transfer id and attempt. A table maps (state, event) to the next state and the actions to carry out in
order; every pair is defined, and a pair that is not listed leaves the state alone and does nothing, which is what a
late or repeated event deserves. Data (page lists, writes in flight, clocks) lives with the drivers in `sending.py` and
`receiving.py`, which turn it into events: `COMPLETE` when nothing is left to write, `QUIET` when no write is in flight.

Ownership rule behind the tables: announced pages belong to their last possible writer. The receiver leaves `DRAINING`
only by proof (the writer said that all its writes ended well, or the engine that they could land in is closed).
"""

from __future__ import annotations

from enum import Enum, auto
from types import MappingProxyType
from typing import Generic, TypeVar


class SendState(Enum):
    """`OPENED` nobody joined, prefill not begun · `JOINED` decode joined, prefill not begun · `RUNNING` prefill began,
    nobody joined · `OFFERED` both; waits for pages · `WRITING` pages known · `CONFIRMING` snapshot sent, waits for the
    receipt · `QUIESCING` failed, writes in flight · `DELIVERED`, `FAILED` over, no write in flight."""

    OPENED = auto()
    JOINED = auto()
    RUNNING = auto()
    OFFERED = auto()
    WRITING = auto()
    CONFIRMING = auto()
    QUIESCING = auto()
    DELIVERED = auto()
    FAILED = auto()


class SendEvent(Enum):
    JOIN = auto()  # the receiver asked for the transfer
    START = auto()  # the scheduler began the first chunk
    PAGES = auto()  # the receiver announced its pages
    COMPLETE = auto()  # the request is finished here and every announced page is confirmed written
    ACK = auto()  # the receiver has pages and snapshot
    ABORT = auto()  # our scheduler gave up, or the transfer contradicts itself
    PEER_ABORT = auto()  # the receiver gave up
    PEER_LOST = auto()  # the link ended or the peer is suspected
    WRITE_FAILED = auto()  # a write ended without confirmation
    EXPIRE = auto()  # the state's time is over
    QUIET = auto()  # no write of this transfer is in flight


class SendAction(Enum):
    SEND_STARTED = auto()
    POST = auto()  # write what is computed and announced
    SEND_SNAPSHOT = auto()
    TELL_PEER = auto()  # how our writes stand: none in flight, still in flight, or lost
    REPORT_DELIVERED = auto()
    REPORT_FAILED = auto()
    REPORT_QUIET = auto()
    FENCE = auto()  # ask for a new engine epoch unless the writes end by themselves first


class ReceiveState(Enum):
    """`EXPECTING` joined or joining · `BEGUN` prefill began, our scheduler reserves pages · `RECEIVING` pages
    announced: bytes may land · `CHECKING` snapshot here, page hashes compared · `DRAINING` failed while bytes may still
    land: pages in quarantine · `ARRIVED`, `FAILED` over, nothing can land."""

    EXPECTING = auto()
    BEGUN = auto()
    RECEIVING = auto()
    CHECKING = auto()
    DRAINING = auto()
    ARRIVED = auto()
    FAILED = auto()


class ReceiveEvent(Enum):
    STARTED = auto()  # the sender began the first chunk
    ANNOUNCE = auto()  # our scheduler reserved pages
    SNAPSHOT = auto()  # all writes are confirmed; the state of the request is here
    VERIFIED = auto()  # page hashes agree, or were not asked for
    MISMATCH = auto()
    ABORT = auto()  # our scheduler gave up
    PEER_ABORT = auto()  # the sender gave up; its writes are still in flight
    PEER_QUIET = auto()  # the sender gave up (or we did) and every write of it ended well
    PEER_UNSURE = auto()  # the sender posts no more, but cannot vouch for what it posted
    PEER_LOST = auto()
    REFUSED = auto()  # no such peer, or it does not fit
    EXPIRE = auto()
    FENCED = auto()  # every engine that a write could land in is closed


class ReceiveAction(Enum):
    REPORT_BEGUN = auto()
    SEND_PAGES = auto()
    VERIFY = auto()
    SEND_ACK = auto()
    SEND_ABORT = auto()
    REPORT_ARRIVED = auto()
    REPORT_FAILED = auto()
    REPORT_QUIET = auto()
    FENCE = auto()


S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)
A = TypeVar("A", bound=Enum)


class Table(Generic[S, E, A]):
    """A total transition table. `rows` lists what changes something; all other pairs keep the state."""

    def __init__(self, states: type[S], events: type[E], rows: dict[tuple[S, E], tuple[S, tuple[A, ...]]]) -> None:
        full = {(state, event): (state, ()) for state in states for event in events}
        self.rows = MappingProxyType({**full, **rows})
        self.listed = MappingProxyType(rows)

    def step(self, state: S, event: E) -> tuple[S, tuple[A, ...]]:
        return self.rows[state, event]


def _send_rows() -> dict[tuple[SendState, SendEvent], tuple[SendState, tuple[SendAction, ...]]]:
    s, e, a = SendState, SendEvent, SendAction
    rows: dict[tuple[SendState, SendEvent], tuple[SendState, tuple[SendAction, ...]]] = {
        (s.OPENED, e.JOIN): (s.JOINED, ()),
        (s.OPENED, e.START): (s.RUNNING, ()),
        (s.JOINED, e.START): (s.OFFERED, (a.SEND_STARTED,)),
        (s.RUNNING, e.JOIN): (s.OFFERED, (a.SEND_STARTED,)),
        (s.OFFERED, e.PAGES): (s.WRITING, (a.POST,)),
        (s.WRITING, e.COMPLETE): (s.CONFIRMING, (a.SEND_SNAPSHOT,)),
        (s.CONFIRMING, e.ACK): (s.DELIVERED, (a.REPORT_DELIVERED,)),
        (s.QUIESCING, e.WRITE_FAILED): (s.QUIESCING, (a.TELL_PEER,)),
        (s.QUIESCING, e.PEER_ABORT): (s.QUIESCING, (a.TELL_PEER,)),
        (s.QUIESCING, e.PEER_LOST): (s.QUIESCING, (a.FENCE,)),
        (s.QUIESCING, e.EXPIRE): (s.QUIESCING, (a.FENCE,)),
        (s.QUIESCING, e.QUIET): (s.FAILED, (a.TELL_PEER, a.REPORT_QUIET)),
    }
    for state in (s.OPENED, s.JOINED, s.RUNNING, s.OFFERED, s.CONFIRMING):
        for event in (e.ABORT, e.PEER_ABORT, e.EXPIRE):
            rows[state, event] = (s.FAILED, (a.TELL_PEER, a.REPORT_FAILED))
        rows[state, e.PEER_LOST] = (s.FAILED, (a.REPORT_FAILED,))
    for event in (e.ABORT, e.PEER_ABORT, e.EXPIRE, e.WRITE_FAILED):
        rows[s.WRITING, event] = (s.QUIESCING, (a.TELL_PEER, a.REPORT_FAILED))
    rows[s.WRITING, e.PEER_LOST] = (s.QUIESCING, (a.REPORT_FAILED, a.FENCE))
    return rows


def _receive_rows() -> dict[tuple[ReceiveState, ReceiveEvent], tuple[ReceiveState, tuple[ReceiveAction, ...]]]:
    s, e, a = ReceiveState, ReceiveEvent, ReceiveAction
    rows: dict[tuple[ReceiveState, ReceiveEvent], tuple[ReceiveState, tuple[ReceiveAction, ...]]] = {
        (s.EXPECTING, e.STARTED): (s.BEGUN, (a.REPORT_BEGUN,)),
        (s.BEGUN, e.ANNOUNCE): (s.RECEIVING, (a.SEND_PAGES,)),
        (s.RECEIVING, e.SNAPSHOT): (s.CHECKING, (a.VERIFY,)),
        (s.RECEIVING, e.ABORT): (s.DRAINING, (a.SEND_ABORT, a.REPORT_FAILED)),
        (s.RECEIVING, e.EXPIRE): (s.DRAINING, (a.SEND_ABORT, a.REPORT_FAILED)),
        (s.RECEIVING, e.PEER_ABORT): (s.DRAINING, (a.REPORT_FAILED,)),
        (s.RECEIVING, e.PEER_QUIET): (s.FAILED, (a.REPORT_FAILED,)),
        (s.RECEIVING, e.PEER_UNSURE): (s.DRAINING, (a.REPORT_FAILED, a.FENCE)),
        (s.RECEIVING, e.PEER_LOST): (s.DRAINING, (a.REPORT_FAILED, a.FENCE)),
        (s.CHECKING, e.VERIFIED): (s.ARRIVED, (a.SEND_ACK, a.REPORT_ARRIVED)),
        (s.CHECKING, e.MISMATCH): (s.FAILED, (a.SEND_ABORT, a.REPORT_FAILED)),
        (s.CHECKING, e.ABORT): (s.FAILED, (a.SEND_ABORT, a.REPORT_FAILED)),
        (s.CHECKING, e.EXPIRE): (s.FAILED, (a.SEND_ABORT, a.REPORT_FAILED)),
        (s.DRAINING, e.SNAPSHOT): (s.FAILED, (a.REPORT_QUIET,)),
        (s.DRAINING, e.PEER_QUIET): (s.FAILED, (a.REPORT_QUIET,)),
        (s.DRAINING, e.FENCED): (s.FAILED, (a.REPORT_QUIET,)),
        (s.DRAINING, e.PEER_UNSURE): (s.DRAINING, (a.FENCE,)),
        (s.DRAINING, e.PEER_LOST): (s.DRAINING, (a.FENCE,)),
        (s.DRAINING, e.EXPIRE): (s.DRAINING, (a.FENCE,)),
    }
    for state in (s.EXPECTING, s.BEGUN):
        for event in (e.ABORT, e.EXPIRE):
            rows[state, event] = (s.FAILED, (a.SEND_ABORT, a.REPORT_FAILED))
        for event in (e.PEER_ABORT, e.PEER_QUIET, e.PEER_UNSURE, e.PEER_LOST, e.REFUSED):
            rows[state, event] = (s.FAILED, (a.REPORT_FAILED,))
    for event in (e.PEER_ABORT, e.PEER_QUIET, e.PEER_UNSURE):
        rows[s.CHECKING, event] = (s.FAILED, (a.REPORT_FAILED,))
    return rows


SEND_TABLE = Table(SendState, SendEvent, _send_rows())
RECEIVE_TABLE = Table(ReceiveState, ReceiveEvent, _receive_rows())
