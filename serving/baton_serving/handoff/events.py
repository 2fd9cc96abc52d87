"""What the handoff tells the scheduler. Plain data, delivered in order, each to one transfer and attempt."""

from __future__ import annotations

import msgspec


class HandoffFailure(msgspec.Struct, frozen=True):
    """Why a transfer failed: `code` is one of `errors.ERRORS_BY_CODE`."""

    code: str
    message: str


class HandoffEvent(msgspec.Struct, frozen=True):
    transfer_id: str
    attempt: int


class Begun(HandoffEvent, frozen=True):
    """Receiving: the sender computes the first chunk. Reserve pages for so many tokens, then call `announce`."""

    kv_tokens: int


class Arrived(HandoffEvent, frozen=True):
    """Receiving: pages and snapshot are here, nothing can land any more. `pages` and `nbytes` came from the worker
    `sender` in `seconds`, the time during which writes were under way."""

    snapshot: bytes
    pages: int
    nbytes: int
    seconds: float
    sender: str


class ReceiveFailed(HandoffEvent, frozen=True):
    """Receiving: over. Announced pages are free at once when `quiet`, else only after `ReceiveQuiet`."""

    failure: HandoffFailure
    quiet: bool


class ReceiveQuiet(HandoffEvent, frozen=True):
    """Receiving: no write can land on the announced pages any more."""


class Delivered(HandoffEvent, frozen=True):
    """Sending: the receiver owns the request. The pages are no longer read."""

    nbytes: int
    seconds: float


class SendFailed(HandoffEvent, frozen=True):
    """Sending: over. The pages are free at once when `quiet`, else they are still being read until `SendQuiet`."""

    failure: HandoffFailure
    quiet: bool


class SendQuiet(HandoffEvent, frozen=True):
    """Sending: no write reads the pages any more."""
