"""One log line per request as it ends, as talkative as `--log-requests-level` says."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import msgspec

from baton_serving.logs import fields
from baton_serving.runtime.messages import Failure
from baton_serving.runtime.requests import RequestRecord
from baton_serving.runtime.vocabulary import Vocabulary

log = logging.getLogger(__name__)

SHORT: Final = 2048  # characters of prompt and answer at level 2


class RequestLog:
    """Observer that logs. Levels: 0 ids and times; 1 and parameters; 2 and the first `SHORT` characters; 3 and all."""

    def __init__(self, level: int, vocabulary: Vocabulary) -> None:
        self._level = level
        self._vocabulary = vocabulary

    def started(self, record: RequestRecord) -> None:
        """A request is logged once, when all about it is known."""

    def produced(self, record: RequestRecord, index: int, tokens: int, now: float) -> None:
        """As above."""

    def failed(self, failure: Failure) -> None:
        """Whoever found the worker failing has logged it."""

    def finished(self, record: RequestRecord) -> None:
        log.info("request ended", extra=fields(**self._values(record)))

    def _values(self, record: RequestRecord) -> dict[str, object]:
        request = record.request
        values: dict[str, object] = {
            "rid": request.rid,
            "route": request.route,
            "outcome": record.outcome,
            "prompt_tokens": record.prompt_tokens,
            "cached_tokens": record.cached_prompt_tokens,
            "completion_tokens": record.completion_tokens,
            "seconds": record.finished - request.received,
        }
        if record.first_token:
            values["first_token_after"] = record.first_token - request.received
        if request.trace:
            values["trace"] = request.trace
        if record.message:
            values["message"] = record.message
        if self._level >= 1:
            values["choices"] = len(request.choices)
            values["params"] = msgspec.json.encode(request.choices[0].params).decode()
        if self._level >= 2:
            limit = None if self._level >= 3 else SHORT
            values["prompts"] = [self._prompt(prompt, limit) for prompt in request.prompts]
            values["answers"] = ["".join(text)[:limit] for text in record.texts]
        return values

    def _prompt(self, prompt: Sequence[int], limit: int | None) -> str:
        """A token is at least a character, with few exceptions: no more tokens than characters are decoded."""
        decoder = self._vocabulary.decoder((), skip_special_tokens=False)
        return "".join([decoder.feed(token_id) for token_id in prompt[:limit]])[:limit]
