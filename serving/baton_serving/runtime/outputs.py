"""Joining consecutive outputs of one request."""

from __future__ import annotations

from baton_serving.runtime.messages import TokenOutput


def merge(earlier: TokenOutput, later: TokenOutput) -> TokenOutput:
    """One output that says what both said, `earlier` extended in place."""
    earlier.token_ids += later.token_ids
    earlier.logprobs += later.logprobs
    if later.prompt_logprobs is not None:
        earlier.prompt_logprobs = later.prompt_logprobs
    earlier.prompt_tokens = later.prompt_tokens or earlier.prompt_tokens
    earlier.cached_tokens = later.cached_tokens or earlier.cached_tokens
    earlier.completion_tokens = later.completion_tokens or earlier.completion_tokens
    earlier.finish = later.finish
    earlier.failure = later.failure
    earlier.embedding = later.embedding
    earlier.timings = later.timings or earlier.timings
    return earlier


def is_terminal(output: TokenOutput) -> bool:
    return output.finish is not None or output.failure is not None
