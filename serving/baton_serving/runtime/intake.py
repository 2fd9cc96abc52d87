"""From a client's prompts and sampling fields to tokenized, validated choices. Shared by every surface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from baton_serving.errors import InvalidRequest
from baton_serving.runtime.requests import Choice
from baton_serving.runtime.tokenizer import ChatPrompt, Tokenizer
from baton_serving.runtime.vocabulary import NO_VOCABULARY, Vocabulary
from baton_serving.sampling.params import SamplingParams
from baton_serving.sampling.seeds import choice_seed
from baton_serving.sampling.validate import Dialect, Limits, parse_sampling

Prompt = str | Sequence[int] | ChatPrompt

_BYTES_PER_TOKEN_SLACK = 4  # normalisation may shorten a text before it is cut into tokens


@dataclass(frozen=True)
class Intake:
    """What prompts are read with. `tokenizer` None: token ids only.

    `preferred` are sampling fields for clients that leave them out. `auto_truncate` cuts the start off a prompt that is
    too long rather than refuse it.
    """

    tokenizer: Tokenizer | None
    limits: Limits
    preferred: Mapping[str, object] = field(default_factory=dict)
    auto_truncate: bool = False

    @property
    def vocabulary(self) -> Vocabulary:
        return NO_VOCABULARY if self.tokenizer is None else self.tokenizer.vocabulary

    async def tokenize(self, prompt: Prompt, name: str) -> list[int]:
        """Token ids of one prompt. Raises InvalidRequest naming the client's field `name`."""
        if isinstance(prompt, str):
            ids = await self.tokenize_text(prompt, name)
        elif isinstance(prompt, ChatPrompt):
            ids = await self._require_tokenizer(name).encode_chat_soon(prompt)
        else:
            ids = list(prompt)
            self.check_ids(ids, name)
        if not ids:
            raise InvalidRequest(f"{name} is empty: send at least one token", param=name)
        return ids

    def check_ids(self, ids: Sequence[int], name: str) -> None:
        """Refuse ids that the model does not have."""
        if ids and (min(ids) < 0 or max(ids) >= self.limits.vocab_size):
            bad = next(token_id for token_id in ids if not 0 <= token_id < self.limits.vocab_size)
            raise InvalidRequest(
                f"{name} holds {bad}, but token ids run from 0 to {self.limits.vocab_size - 1}", param=name
            )

    async def choices(
        self, prompts: Sequence[Prompt], values: Sequence[Mapping[str, object]], dialect: Dialect
    ) -> tuple[list[list[int]], list[Choice]]:
        """The tokenized prompts, and their choices in order: all of the first prompt, then all of the second ...

        `values` holds each prompt's sampling fields.
        """
        tokenized: list[list[int]] = []
        choices: list[Choice] = []
        for index, (prompt, fields) in enumerate(zip(prompts, values, strict=True)):
            ids = await self.tokenize(prompt, dialect.prompt_field)
            merged = self._with_preferred(fields, dialect)
            if self.auto_truncate:
                ids = self._truncate(ids, merged, dialect)
            params, n = parse_sampling(merged, dialect, self.limits, len(ids))
            tokenized.append(ids)
            choices += [Choice(prompt=index, params=_nth(params, number)) for number in range(n)]
        return tokenized, choices

    async def tokenize_text(self, text: str, name: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, which must not be empty nor hopelessly long. Raises InvalidRequest."""
        tokenizer = self._require_tokenizer(name)
        if not text:
            raise InvalidRequest(f"{name} is empty: send some text", param=name)
        longest = tokenizer.longest_token
        if longest and not self.auto_truncate:
            bound = self.limits.context_length * longest * _BYTES_PER_TOKEN_SLACK
            if len(text) > bound:
                raise InvalidRequest(
                    f"{name} has {len(text)} characters, which cannot fit the model's context of "
                    f"{self.limits.context_length} tokens: shorten it",
                    param=name,
                )
        try:
            return await tokenizer.encode_soon(text, add_special_tokens=add_special_tokens)
        except InvalidRequest as error:
            raise InvalidRequest(f"{name}: {error.message}", param=name) from error

    def text_of(self, ids: Sequence[int], name: str, *, skip_special_tokens: bool) -> str:
        """The text of `ids`. Raises InvalidRequest for ids that the model does not have."""
        self.check_ids(ids, name)
        return self._require_tokenizer(name).decode(ids, skip_special_tokens=skip_special_tokens)

    def _require_tokenizer(self, name: str) -> Tokenizer:
        if self.tokenizer is None:
            raise InvalidRequest(
                "this worker runs without a tokenizer (--skip-tokenizer-init): send token ids", param=name
            )
        return self.tokenizer

    def _with_preferred(self, fields: Mapping[str, object], dialect: Dialect) -> Mapping[str, object]:
        given = {name for name, value in fields.items() if value is not None}
        missing = {
            dialect.names(name)[0]: value
            for name, value in self.preferred.items()
            if not given.intersection(dialect.names(name))
        }
        return {**missing, **{name: fields[name] for name in fields if name not in missing}} if missing else fields

    def _truncate(self, ids: list[int], fields: Mapping[str, object], dialect: Dialect) -> list[int]:
        """Keep the end of the prompt, with room for the answer that was asked for (one token when left open)."""
        asked = next((v for name in dialect.names("max_new_tokens") if (v := fields.get(name)) is not None), None)
        wanted = asked if isinstance(asked, int) and asked > 0 else 1
        room = self.limits.context_length - wanted
        return ids[-room:] if 0 < room < len(ids) else ids


def _nth(params: SamplingParams, number: int) -> SamplingParams:
    """The parameters of choice `number` of a prompt: its own seed, which follows from the first one's."""
    return msgspec.structs.replace(params, seed=choice_seed(params.seed, number))
