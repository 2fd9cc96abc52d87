"""Control messages between two workers' handoff services: msgpack in one ZeroMQ frame, a union tagged by class name.

A frame is `MAGIC`, one version byte, then the message. Every message carries the sender's incarnation; those about a
transfer carry its id and attempt, compared whole. What does not decode is refused and counted, never guessed at.
"""

from __future__ import annotations

import msgspec

from baton_serving.handoff.layout import PROTOCOL_VERSION, PeerDescriptor

MAGIC = b"BTN"
HEADER = MAGIC + bytes([PROTOCOL_VERSION])


class Key(msgspec.Struct, frozen=True, array_like=True):
    """One attempt at one transfer."""

    transfer: str
    attempt: int

    def __str__(self) -> str:
        return f"{self.transfer}#{self.attempt}"


class PageSpan(msgspec.Struct, frozen=True, array_like=True):
    """Pages of KV group `group` from page index `first` of the request on. Page 0 stands for "none here"."""

    group: int
    first: int
    pages: list[int]


class PageDigest(msgspec.Struct, frozen=True, array_like=True):
    """xxh64 of the bytes that rank `source` owes rank `target` in page `index` of `group`, in the target's order."""

    source: int
    target: int
    group: int
    index: int
    value: int


class Control(msgspec.Struct, kw_only=True, tag=True):
    """Base of all messages."""

    incarnation: str


class Hello(Control):
    """First message of a link, from the side that dialled, and again with a higher epoch when engines were replaced."""

    descriptor: PeerDescriptor


class HelloAck(Control):
    """Answer to `Hello`: the peer is admitted. `epoch` is the one whose engine is in use towards the other side now: no
    write that matters is under way into an older one."""

    descriptor: PeerDescriptor
    epoch: int


class HelloRefused(Control):
    """This link is not or no longer wanted: the two workers do not fit (`reason` names both), or one gave the other
    up."""

    reason: str


class Heartbeat(Control):
    """`tick` is the scheduler loop's turn counter. `busy` are seconds for which it may stand still, declared ahead."""

    tick: int
    busy: float = 0.0


class TransferMessage(Control):
    key: Key


class Join(TransferMessage):
    """Receiver → sender: I want this transfer."""


class Started(TransferMessage):
    """Sender → receiver: the first chunk is being computed; KV of this many tokens is to come, prefix included."""

    kv_tokens: int


class Pages(TransferMessage):
    """Receiver → sender: write here. `prefix_tokens` are those whose KV the receiver holds already."""

    spans: list[PageSpan]
    prefix_tokens: int
    verify: bool = False


class Snapshot(TransferMessage):
    """Sender → receiver: every write is confirmed; this is the state of the request, opaque to the handoff."""

    payload: bytes
    pages: int
    nbytes: int
    seconds: float
    digests: list[PageDigest] = []


class Ack(TransferMessage):
    """Receiver → sender: pages and snapshot are mine."""


class Abort(TransferMessage):
    """I give up. From a sender: my writes are still in flight. `code` is one of `errors.ERRORS_BY_CODE`."""

    reason: str
    code: str = "unavailable"


class Aborted(TransferMessage):
    """Sender → receiver: I post nothing more. `quiesced`: all writes ended well, so none can land any more; else they
    may land in engines up to `epoch`."""

    quiesced: bool
    epoch: int
    reason: str
    code: str = "unavailable"


Message = Hello | HelloAck | HelloRefused | Heartbeat | Join | Started | Pages | Snapshot | Ack | Abort | Aborted

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class Malformed(ValueError):
    """A frame that is no message of this protocol version."""


def encode(message: Control) -> bytes:
    return HEADER + _ENCODER.encode(message)


def decode(frame: bytes) -> Message:
    """Raise `Malformed` for anything that this version did not send."""
    if frame[: len(HEADER)] != HEADER:
        raise Malformed("not a handoff frame of this version")
    try:
        return _DECODER.decode(memoryview(frame)[len(HEADER) :])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(str(error)) from error
