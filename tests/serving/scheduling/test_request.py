from __future__ import annotations

from typing import Any

import pytest

from baton_serving.errors import InternalError
from baton_serving.sampling.params import SamplingParams
from baton_serving.scheduling.events import Finish
from baton_serving.scheduling.request import TRANSITIONS, Event, LogprobOptions, Request, State


def make(prompt: list[int] | None = None, logprob_start: int | None = None, **params: Any) -> Request:
    return Request(
        "r",
        prompt or [1, 2, 3, 4],
        SamplingParams(**params),
        eos_ids=frozenset({9}),
        logprobs=None if logprob_start is None else LogprobOptions(start=logprob_start),
    )


def test_every_state_can_be_reached_and_left() -> None:
    reached = {State.NEW} | set(TRANSITIONS.values())
    assert reached == set(State)
    assert {state for state, _ in TRANSITIONS} == set(State) - {State.GONE}


def test_a_terminal_output_is_possible_before_the_end_and_only_once() -> None:
    ends = {state for state, event in TRANSITIONS if event is Event.END}
    assert ends == set(State) - {State.LEAVING, State.GONE}
    assert {TRANSITIONS[state, Event.END] for state in ends} == {State.LEAVING}


def test_an_event_that_the_table_lacks_is_an_error() -> None:
    with pytest.raises(InternalError, match="request r: retract in state new"):
        make().advance(Event.RETRACT)


def test_tokens_run_over_prompt_and_output() -> None:
    request = make()
    request.output = [5, 6, 7]
    assert request.tokens(1, 3) == [2, 3]
    assert request.tokens(2, 6) == [3, 4, 5, 6]
    assert request.tokens(5, 7) == [6, 7]


@pytest.mark.parametrize(
    ("params", "output", "finish"),
    [
        ({"max_new_tokens": 3}, [1, 9], Finish("stop", 9)),
        ({"max_new_tokens": 3}, [1, 2], None),
        ({"max_new_tokens": 2}, [1, 2], Finish("length")),
        ({"max_new_tokens": 2}, [1, 9], Finish("stop", 9)),
        ({"ignore_eos": True}, [1, 9], None),
        ({"ignore_eos": True, "stop_token_ids": (4,)}, [4], Finish("stop", 4)),
        ({"min_new_tokens": 2}, [1, 9], None),
        ({"min_new_tokens": 1}, [1, 9], Finish("stop", 9)),
    ],
)
def test_what_ends_a_request(params: dict[str, Any], output: list[int], finish: Finish | None) -> None:
    request = make(**params)
    request.output = output
    assert request.finish_at(len(output)) == finish


@pytest.mark.parametrize(("start", "limit"), [(None, 3), (-1, 3), (0, 0), (1, 0), (2, 1), (9, 3)])
def test_prompt_logprobs_bound_what_may_come_from_the_cache(start: int | None, limit: int) -> None:
    assert make(logprob_start=start).prefix_limit == limit


def test_prompt_logprobs_are_taken_once_and_complete() -> None:
    request = make(logprob_start=2)
    assert request.take_prompt_logprobs() is None
    request.logprob_next = 4
    assert request.take_prompt_logprobs() == []
    assert request.take_prompt_logprobs() is None


def test_a_request_begun_elsewhere_owes_no_prompt_logprobs() -> None:
    options = LogprobOptions(start=0)
    request = Request("r", [1, 2], SamplingParams(), logprobs=options, output=[3])
    assert not request.owes_prompt_logprobs
    assert request.sent == 1
