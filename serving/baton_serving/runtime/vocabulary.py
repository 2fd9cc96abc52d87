"""What each token id says, and turning tokens into text one at a time."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Final, Protocol

REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
_LONGEST_WINDOW: Final = 32  # tokens; text that still ends in no whole character by then is invalid, not unfinished


class TextDecoder(Protocol):
    """Decodes the tokens of one answer in order. What was returned so far depends on the tokens so far alone."""

    @property
    def pending(self) -> bool:
        """Whether the last tokens end inside a character, which is held back."""
        ...

    def feed(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        ...


class Vocabulary(Protocol):
    """The tokens of one tokenizer. `longest_token` is the bytes of its longest, 0 when unknown."""

    @property
    def longest_token(self) -> int: ...

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to the text; empty for an id that the tokenizer does not have."""
        ...

    def decoder(self, prompt_tail: Sequence[int], *, skip_special_tokens: bool) -> TextDecoder:
        """A decoder for what follows `prompt_tail`, in whose last character the answer may begin."""
        ...


class ByteVocabulary:
    """A tokenizer whose tokens are byte strings: byte-level BPE, or SentencePiece with byte fallback.

    `tokens[i]` are the bytes of id i, `special` the ids that `skip_special_tokens` leaves out.
    """

    def __init__(self, tokens: Sequence[bytes], special: frozenset[int]) -> None:
        self._tokens = tokens
        self._special = special
        self.longest_token = max(map(len, tokens), default=0)
        self._visible = [b"" if index in special else token for index, token in enumerate(tokens)]

    def token_bytes(self, token_id: int) -> bytes:
        return self._tokens[token_id] if 0 <= token_id < len(self._tokens) else b""

    def decoder(self, prompt_tail: Sequence[int], *, skip_special_tokens: bool) -> TextDecoder:
        decoder = _ByteDecoder(self._visible if skip_special_tokens else self._tokens)
        for token_id in prompt_tail:
            decoder.feed(token_id)
        decoder.begin()
        return decoder


NO_VOCABULARY: Final[Vocabulary] = ByteVocabulary((), frozenset())  # of a worker that serves token ids alone


class _ByteDecoder:
    """UTF-8 with invalid bytes replaced as the Unicode standard advises (maximal subparts), O(1) per token."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self._tokens = tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._inside_prompt_character = False

    @property
    def pending(self) -> bool:
        return bool(self._utf8.getstate()[0])

    def begin(self) -> None:
        self._inside_prompt_character = self.pending

    def feed(self, token_id: int) -> str:
        data = self._tokens[token_id] if 0 <= token_id < len(self._tokens) else b""
        if self._inside_prompt_character and data:
            self._inside_prompt_character = False
            if data[0] & 0xC0 != 0x80:  # not a continuation byte: the broken character is the prompt's alone
                self._utf8.reset()
        return self._utf8.decode(data)


Decode = Callable[[Sequence[int], bool], str]


class WindowVocabulary:
    """Any other tokenizer: `decode(ids, skip_special_tokens)` of a few tokens, with and without the new one.

    A token that adds nothing, or a replacement character at the end, is held back: a character may be unfinished.
    """

    longest_token = 0

    def __init__(self, decode: Decode) -> None:
        self._decode = decode

    def token_bytes(self, token_id: int) -> bytes:
        return self._decode([token_id], False).encode()

    def decoder(self, prompt_tail: Sequence[int], *, skip_special_tokens: bool) -> TextDecoder:
        return _WindowDecoder(self._decode, prompt_tail, skip_special_tokens)


class _WindowDecoder:
    """`_window[:_shown]` gives the context, the tokens after it are not yet shown."""

    def __init__(self, decode: Decode, prompt_tail: Sequence[int], skip_special_tokens: bool) -> None:
        self._decode = decode
        self._skip = skip_special_tokens
        self._window = list(prompt_tail)
        self._shown = len(self._window)

    @property
    def pending(self) -> bool:
        return self._shown < len(self._window)

    def feed(self, token_id: int) -> str:
        self._window.append(token_id)
        before = self._decode(self._window[: self._shown], self._skip)
        text = self._decode(self._window, self._skip)
        unfinished = text.endswith(REPLACEMENT) or len(text) == len(before)
        if unfinished and len(self._window) - self._shown < _LONGEST_WINDOW:
            return ""
        self._window = self._window[self._shown :]
        self._shown = len(self._window)
        return text[len(before) :]
