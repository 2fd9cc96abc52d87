"""Fields that every generating route accepts besides its own."""

from __future__ import annotations

import msgspec

from baton_serving.runtime.messages import Timings


class HandoffFields(msgspec.Struct):
    """What Baton's gateway sends to both legs of a request; see `messages.HandoffTicket`."""

    transfer_id: str
    peer: str = ""
    attempt: int = 0
    receiver: str = ""


class ResumeFields(msgspec.Struct):
    """A stream that moves here: per choice the tokens that its client already has.

    `id` and `created` are those of the stream so far, so that its events stay alike.
    """

    output_ids: list[list[int]]
    id: str | None = None
    created: int | None = None


class ChoiceExtension(msgspec.Struct):
    """What a finished choice says under `baton`, when the request asked with `baton_timings`."""

    timings: Timings


class CommonFields(msgspec.Struct, kw_only=True):
    """`bootstrap_*` are how SGLang's router names the prefill leg: one value, or one per choice.

    `baton_timings` asks for the times at which each choice passed its stages, in its last event.
    """

    rid: str | None = None
    priority: int | None = None
    bootstrap_host: str | list[str | None] | None = None
    bootstrap_port: int | list[int | None] | None = None
    bootstrap_room: int | list[int | None] | None = None
    baton_handoff: HandoffFields | None = None
    baton_resume: ResumeFields | None = None
    baton_timings: bool | None = None
