"""How many tokens a request used, for limits by rate: read off the answer once it is over, and only then."""

from __future__ import annotations

import msgspec

from baton_serving.gateway.transcript import Transcript, Unreadable


class _Counts(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class _Answer(msgspec.Struct):
    """OpenAI's routes say it in `usage`, `/generate` in `meta_info`."""

    usage: _Counts | None = None
    meta_info: _Counts | None = None

    @property
    def tokens(self) -> int:
        counts = self.usage or self.meta_info
        return 0 if counts is None else counts.total


_answer: msgspec.json.Decoder[_Answer | list[_Answer]] = msgspec.json.Decoder(_Answer | list[_Answer])


def whole_tokens(body: bytes) -> int:
    """Prompt and answer of a reply that came in one piece; 0 when it does not say."""
    try:
        told = _answer.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return 0
    return sum(one.tokens for one in told) if isinstance(told, list) else told.tokens


def streamed_tokens(prompt_tokens: int, transcript: Transcript | None) -> int:
    """Prompt and answer of a stream that has begun; only the prompt's when its events name no tokens."""
    if transcript is None:
        return prompt_tokens
    try:
        return prompt_tokens + sum(len(tokens) for tokens in transcript.progress().tokens.values())
    except Unreadable:
        return prompt_tokens
