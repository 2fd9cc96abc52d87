"""Server-sent events. `docs/internals/stream-ids.md` describes the `id:` field."""

from __future__ import annotations

import msgspec

from baton_serving.runtime.requests import ChoiceOutput

DONE = b"data: [DONE]\n\n"
_encoder = msgspec.json.Encoder()


def event(data: object, output: ChoiceOutput | None = None) -> bytes:
    """One event with `data` as JSON. With `output` its `id:` says which tokens the event brings."""
    head = b"" if output is None else stream_id(output)
    return head + b"data: " + _encoder.encode(data) + b"\n\n"


def raw_event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def stream_id(output: ChoiceOutput) -> bytes:
    """`id: [choice, position of the first token in the answer, token, token, ...]`, one line."""
    tokens = output.tokens
    first = tokens.completion_tokens - len(tokens.token_ids)
    return b"id: " + _encoder.encode([output.index, first, *tokens.token_ids]) + b"\n"
