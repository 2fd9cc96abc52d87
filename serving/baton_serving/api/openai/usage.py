"""Token counts of a response."""

from __future__ import annotations

from collections.abc import Iterable

from baton_serving.api.protocol.openai import PromptTokensDetails, Usage
from baton_serving.runtime.messages import TokenOutput
from baton_serving.runtime.requests import GenerateRequest


class UsageCounter:
    """Collects the counts of a request's choices. Each prompt counts once, however many answers it gets."""

    def __init__(self, request: GenerateRequest, *, report_cached: bool) -> None:
        self._request = request
        self._report_cached = report_cached
        self._completion = [len(choice.output_ids) for choice in request.choices]
        self._cached: dict[int, int] = {}

    def add(self, index: int, tokens: TokenOutput) -> None:
        """Take the counts of an output of choice `index`. Of a prompt's choices the one that found least counts."""
        self._completion[index] = tokens.completion_tokens or self._completion[index]
        if tokens.cached_tokens:
            prompt = self._request.choices[index].prompt
            self._cached[prompt] = min(self._cached.get(prompt, tokens.cached_tokens), tokens.cached_tokens)

    def usage(self) -> Usage:
        prompt = sum(map(len, self._request.prompts))
        completion = sum(self._completion)
        details = PromptTokensDetails(sum(self._cached.values())) if self._report_cached else None
        return Usage(prompt, completion, prompt + completion, details)

    def of(self, outputs: Iterable[tuple[int, TokenOutput]]) -> Usage:
        for index, tokens in outputs:
            self.add(index, tokens)
        return self.usage()
