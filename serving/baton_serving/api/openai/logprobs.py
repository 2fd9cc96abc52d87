"""Log-probabilities in the two shapes of the OpenAI API."""

from __future__ import annotations

from collections.abc import Iterable

from baton_serving.api.protocol.openai import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from baton_serving.runtime.vocabulary import TextDecoder, Vocabulary
from baton_serving.scheduling.step import TokenLogprobs


def chat_logprobs(vocabulary: Vocabulary, logprobs: Iterable[TokenLogprobs]) -> ChatLogprobs:
    return ChatLogprobs([_chat_token(vocabulary, entry) for entry in logprobs])


def _chat_token(vocabulary: Vocabulary, entry: TokenLogprobs) -> TokenLogprob:
    token = vocabulary.token_bytes(entry.token_id)
    tops = [
        TopLogprob(token=_text(data), logprob=_finite(logprob), bytes=list(data))
        for data, logprob in ((vocabulary.token_bytes(token_id), logprob) for token_id, logprob in entry.top)
    ]
    return TokenLogprob(token=_text(token), logprob=_finite(entry.logprob), bytes=list(token), top_logprobs=tops)


class CompletionLogprobsBuilder:
    """Collects the parallel lists of one choice. Offsets count the characters of its text; the first is `offset`.

    `decoder` turns the same tokens into that text, so special tokens that are not shown take no room.
    """

    def __init__(self, vocabulary: Vocabulary, decoder: TextDecoder, offset: int = 0) -> None:
        self._vocabulary = vocabulary
        self._decoder = decoder
        self._offset = offset

    def build(self, logprobs: Iterable[TokenLogprobs], *, first_token: int | None = None) -> CompletionLogprobs:
        """The lists for these tokens; `first_token` is a prompt's first, which nothing predicts."""
        built = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        if first_token is not None:
            self._append(built, first_token, None, None)
        for entry in logprobs:
            tops = {_text(self._vocabulary.token_bytes(token_id)): _finite(value) for token_id, value in entry.top}
            self._append(built, entry.token_id, _finite(entry.logprob), tops)
        return built

    def _append(
        self, built: CompletionLogprobs, token_id: int, logprob: float | None, tops: dict[str, float] | None
    ) -> None:
        built.tokens.append(_text(self._vocabulary.token_bytes(token_id)))
        built.token_logprobs.append(logprob)
        built.top_logprobs.append(tops)
        built.text_offset.append(self._offset)
        self._offset += len(self._decoder.feed(token_id))


def _text(token: bytes) -> str:
    return token.decode("utf-8", "replace")


def _finite(logprob: float) -> float:
    """JSON knows no infinity: a token ruled out shows as the value OpenAI gives to one out of reach."""
    return max(logprob, -9999.0)
