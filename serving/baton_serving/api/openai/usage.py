"""Token counts of a response."""

from __future__ import annotations

from collections.abc import Iterable

from baton_serving.api.protocol.openai import PromptTokensDetails, Usage
from baton_serving.runtime.messages import TokenOutput
from baton_serving.runtime.requests import GenerateRequest, cached_prompt_tokens


class UsageCounter:
    """Collects the counts of a request's choices. Each prompt counts once, however many answers it gets."""

    def __init__(self, request: GenerateRequest, *, report_cached: bool) -> None:
        self._request = request
        self._report_cached = report_cached
        self._completion = [len(choice.output_ids) for choice in request.choices]
        self._cached = [0] * len(request.choices)

    def add(self, index: int, tokens: TokenOutput) -> None:
        """Take the counts of an output of choice `index`."""
        self._completion[index] = tokens.completion_tokens or self._completion[index]
        self._cached[index] = tokens.cached_tokens or self._cached[index]

    def usage(self) -> Usage:
        prompt = sum(map(len, self._request.prompts))
        completion = sum(self._completion)
        details = (
            PromptTokensDetails(cached_prompt_tokens(self._request, self._cached)) if self._report_cached else None
        )
        return Usage(prompt, completion, prompt + completion, details)

    def of(self, outputs: Iterable[tuple[int, TokenOutput]]) -> Usage:
        for index, tokens in outputs:
            self.add(index, tokens)
        return self.usage()
