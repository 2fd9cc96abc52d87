"""The life of one request in the gateway, as a table: phase × event → phase, action.

Until the first bytes go to the client a lost leg costs only time: both legs are released and another pair is tried.
Bytes of decode prove that the prompt's KV has arrived, so from then on the prefill leg no longer matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto


class Phase(Enum):
    """`SENT`: both legs under way, nothing for the client yet. `ENDED`: it has its terminal reply, or is gone."""

    QUEUED = auto()
    SENT = auto()
    STREAMING = auto()
    ENDED = auto()


class Event(Enum):
    """`LOST`: transport error, status worth a retry, or worker gone. `REFUSED`: an answer that no retry can mend."""

    ROUTED = auto()
    NO_ROUTE = auto()  # no workers in time, or the budget of attempts is used up
    PREFILL_DONE = auto()
    PREFILL_LOST = auto()
    PREFILL_REFUSED = auto()
    DECODE_BYTES = auto()
    DECODE_DONE = auto()
    DECODE_LOST = auto()
    DECODE_REFUSED = auto()
    CLIENT_GONE = auto()


class Action(Enum):
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


TRANSITIONS: Mapping[tuple[Phase, Event], tuple[Phase, Action]] = {
    (Phase.QUEUED, Event.ROUTED): (Phase.SENT, Action.SEND),
    (Phase.QUEUED, Event.NO_ROUTE): (Phase.ENDED, Action.REPLY_FAILURE),
    (Phase.QUEUED, Event.CLIENT_GONE): (Phase.ENDED, Action.RELEASE),
    (Phase.SENT, Event.PREFILL_DONE): (Phase.SENT, Action.NONE),
    (Phase.SENT, Event.PREFILL_LOST): (Phase.QUEUED, Action.RETRY),
    (Phase.SENT, Event.PREFILL_REFUSED): (Phase.ENDED, Action.PASS_REFUSAL),
    (Phase.SENT, Event.DECODE_BYTES): (Phase.STREAMING, Action.FORWARD),
    (Phase.SENT, Event.DECODE_DONE): (Phase.ENDED, Action.FINISH),
    (Phase.SENT, Event.DECODE_LOST): (Phase.QUEUED, Action.RETRY),
    (Phase.SENT, Event.DECODE_REFUSED): (Phase.ENDED, Action.PASS_REFUSAL),
    (Phase.SENT, Event.CLIENT_GONE): (Phase.ENDED, Action.RELEASE),
    (Phase.STREAMING, Event.PREFILL_DONE): (Phase.STREAMING, Action.NONE),
    (Phase.STREAMING, Event.PREFILL_LOST): (Phase.STREAMING, Action.NONE),
    (Phase.STREAMING, Event.PREFILL_REFUSED): (Phase.STREAMING, Action.NONE),
    (Phase.STREAMING, Event.DECODE_BYTES): (Phase.STREAMING, Action.FORWARD),
    (Phase.STREAMING, Event.DECODE_DONE): (Phase.ENDED, Action.FINISH),
    (Phase.STREAMING, Event.DECODE_LOST): (Phase.ENDED, Action.BREAK_OFF),
    (Phase.STREAMING, Event.CLIENT_GONE): (Phase.ENDED, Action.RELEASE),
}


def advance(phase: Phase, event: Event) -> tuple[Phase, Action]:
    """The next phase and what to do. Events that come after the end change nothing; others not listed are a bug."""
    if phase is Phase.ENDED:
        return phase, Action.NONE
    return TRANSITIONS[phase, event]
