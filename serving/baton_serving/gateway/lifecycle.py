"""The life of one request in the gateway, as a table: phase × event → phase, action. Pure.

```
QUEUED ──▶ SENT ──▶ STREAMING ──▶ ENDED
  ▲──────────┘       │   ▲ ▲ ╲
  lost before        ▼   │ │   ▶ MOVING ──▶ TAKING     the worker drains: its pages move
  the first byte STRANDED│ └───────┴──────────┘
                  │  ▲   │
                  ▼  │   │
                  RESENT─┘                             the worker is lost: another computes them again
```

Until the client has bytes a lost leg costs only time: both legs are released and another pair is tried. Bytes of decode
prove that the prompt's KV has arrived, so from then on the prefill leg no longer matters. Later the client's bytes say
how far the answer is, and another pair goes on from there in the same stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto


class _Quick(Enum):
    """Members are compared and hashed as the objects that they are: the table is asked several times per request."""

    __hash__ = object.__hash__


class Phase(_Quick):
    """What is under way, and whether the client has had bytes."""

    QUEUED = auto()  # nothing is, and it has none: waiting for admission or for workers
    SENT = auto()  # both legs are, and it has none
    STREAMING = auto()  # decode is
    STRANDED = auto()  # nothing is, but it has: waiting for workers that go on
    RESENT = auto()  # both legs of the continuation are
    MOVING = auto()  # decode is, and was asked to hand over
    TAKING = auto()  # decode stands still, and another was asked to take over
    ENDED = auto()  # the client has its terminal reply, or is gone


class Event(_Quick):
    """`LOST`: transport error, status worth a retry, or worker gone. `REFUSED`: an answer that no retry can mend."""

    ROUTED = auto()
    NO_ROUTE = auto()  # no workers in time, or the budget of attempts is used up
    EXPIRED = auto()  # its own deadline, or admission's
    CLIENT_GONE = auto()
    PREFILL_DONE = auto()
    PREFILL_LOST = auto()
    PREFILL_REFUSED = auto()
    DECODE_BYTES = auto()
    DECODE_DONE = auto()
    DECODE_LOST = auto()
    DECODE_REFUSED = auto()
    DRAINING = auto()  # decode's worker wants to be rid of its requests
    STOOD_STILL = auto()  # decode said with which tokens the other must go on
    MOVE_FAILED = auto()  # decode does not hand over, or nobody takes; it goes on
    TAKER_BYTES = auto()  # the other goes on, and the client has all that came before
    TAKER_DONE = auto()
    TAKER_LOST = auto()


class Action(_Quick):
    """Each one is carried out in full before the next event is looked at."""

    NONE = auto()
    SEND = auto()  # both legs, at once
    RETRY = auto()  # release both legs, then look for another pair
    FORWARD = auto()  # what decode sent so far
    FINISH = auto()  # the rest, and the end of the reply
    PASS_REFUSAL = auto()  # release both legs, reply with what the refusing worker said
    REPLY_FAILURE = auto()  # an error status with a body
    BREAK_OFF = auto()  # an error event into the open stream, no [DONE]
    RELEASE = auto()  # both legs, nobody is listening
    ASK_MOVE = auto()  # ask decode to stand still
    TAKE_OVER = auto()  # send the continuation to another worker, with the first as peer
    STAY = auto()  # release the taker, decode goes on
    SWITCH = auto()  # the taker becomes decode, the first is released; forward
    SWITCH_AND_FINISH = auto()


P, E, A = Phase, Event, Action
_Rows = dict[Event, tuple[Phase, Action]]


def _late_prefill(phase: Phase) -> _Rows:
    return dict.fromkeys((E.PREFILL_DONE, E.PREFILL_LOST, E.PREFILL_REFUSED), (phase, A.NONE))


_OUT_OF_LUCK: _Rows = {E.NO_ROUTE: (P.ENDED, A.BREAK_OFF), E.EXPIRED: (P.ENDED, A.BREAK_OFF)}
_GONE: _Rows = {E.CLIENT_GONE: (P.ENDED, A.RELEASE)}

# Events that come after the end change nothing; others not listed are a bug.
TABLE: Mapping[Phase, _Rows] = {
    P.QUEUED: _GONE
    | {
        E.ROUTED: (P.SENT, A.SEND),
        E.NO_ROUTE: (P.ENDED, A.REPLY_FAILURE),
        E.EXPIRED: (P.ENDED, A.REPLY_FAILURE),
    },
    P.SENT: _GONE
    | {
        E.EXPIRED: (P.ENDED, A.REPLY_FAILURE),
        E.PREFILL_DONE: (P.SENT, A.NONE),
        E.PREFILL_LOST: (P.QUEUED, A.RETRY),
        E.PREFILL_REFUSED: (P.ENDED, A.PASS_REFUSAL),
        E.DECODE_BYTES: (P.STREAMING, A.FORWARD),
        E.DECODE_DONE: (P.ENDED, A.FINISH),
        E.DECODE_LOST: (P.QUEUED, A.RETRY),
        E.DECODE_REFUSED: (P.ENDED, A.PASS_REFUSAL),
    },
    P.STREAMING: _GONE
    | _late_prefill(P.STREAMING)
    | {
        E.EXPIRED: (P.ENDED, A.BREAK_OFF),
        E.DECODE_BYTES: (P.STREAMING, A.FORWARD),
        E.DECODE_DONE: (P.ENDED, A.FINISH),
        E.DECODE_LOST: (P.STRANDED, A.RETRY),
        E.DRAINING: (P.MOVING, A.ASK_MOVE),
    },
    P.STRANDED: _GONE | _OUT_OF_LUCK | {E.ROUTED: (P.RESENT, A.SEND)},
    P.RESENT: _GONE
    | {
        E.EXPIRED: (P.ENDED, A.BREAK_OFF),
        E.PREFILL_DONE: (P.RESENT, A.NONE),
        E.PREFILL_LOST: (P.STRANDED, A.RETRY),
        E.PREFILL_REFUSED: (P.ENDED, A.BREAK_OFF),
        E.DECODE_BYTES: (P.STREAMING, A.FORWARD),
        E.DECODE_DONE: (P.ENDED, A.FINISH),
        E.DECODE_LOST: (P.STRANDED, A.RETRY),
        E.DECODE_REFUSED: (P.ENDED, A.BREAK_OFF),
    },
    P.MOVING: _GONE
    | _late_prefill(P.MOVING)
    | {
        E.EXPIRED: (P.ENDED, A.BREAK_OFF),
        E.DECODE_BYTES: (P.MOVING, A.FORWARD),
        E.DECODE_DONE: (P.ENDED, A.FINISH),
        E.DECODE_LOST: (P.STRANDED, A.RETRY),
        E.STOOD_STILL: (P.TAKING, A.TAKE_OVER),
        E.MOVE_FAILED: (P.STREAMING, A.STAY),
    },
    P.TAKING: _GONE
    | _late_prefill(P.TAKING)
    | {
        E.EXPIRED: (P.ENDED, A.BREAK_OFF),
        E.DECODE_BYTES: (P.TAKING, A.FORWARD),
        E.DECODE_DONE: (P.TAKING, A.NONE),
        E.DECODE_LOST: (P.STRANDED, A.RETRY),
        E.TAKER_BYTES: (P.STREAMING, A.SWITCH),
        E.TAKER_DONE: (P.ENDED, A.SWITCH_AND_FINISH),
        E.TAKER_LOST: (P.STREAMING, A.STAY),
        E.MOVE_FAILED: (P.STRANDED, A.RETRY),
    },
    P.ENDED: dict.fromkeys(Event, (P.ENDED, A.NONE)),
}

TRANSITIONS: Mapping[tuple[Phase, Event], tuple[Phase, Action]] = {
    (phase, event): outcome for phase, rows in TABLE.items() for event, outcome in rows.items() if phase is not P.ENDED
}
