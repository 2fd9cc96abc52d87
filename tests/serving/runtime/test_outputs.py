"""Merging outputs loses nothing."""

from __future__ import annotations

from support.scripted_scheduler import logprob_of

from baton_serving.runtime.messages import Failure, Finish, Timings, TokenOutput
from baton_serving.runtime.outputs import is_terminal, merge


def test_lists_grow_and_the_latest_counts_hold() -> None:
    earlier = TokenOutput(
        rid="r",
        token_ids=[1, 2],
        prompt_tokens=5,
        cached_tokens=3,
        completion_tokens=2,
        logprobs=[logprob_of(1, 0), logprob_of(2, 0)],
        prompt_logprobs=[logprob_of(9, 0)],
        timings=Timings(received=1.0),
    )
    later = TokenOutput(
        rid="r", token_ids=[3], completion_tokens=3, logprobs=[logprob_of(3, 0)], finish=Finish("length")
    )
    merged = merge(earlier, later)
    assert merged.token_ids == [1, 2, 3]
    assert [entry.token_id for entry in merged.logprobs] == [1, 2, 3]
    assert (merged.prompt_tokens, merged.cached_tokens, merged.completion_tokens) == (5, 3, 3)
    assert merged.prompt_logprobs == [logprob_of(9, 0)]
    assert (merged.finish, merged.timings) == (Finish("length"), Timings(received=1.0))
    assert later.token_ids == [3]


def test_what_is_terminal() -> None:
    assert not is_terminal(TokenOutput(rid="r", token_ids=[1]))
    assert is_terminal(TokenOutput(rid="r", finish=Finish("stop")))
    assert is_terminal(TokenOutput(rid="r", failure=Failure("unavailable", "x")))
