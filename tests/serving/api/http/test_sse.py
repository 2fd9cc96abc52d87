"""The wire form of events."""

from __future__ import annotations

from baton_serving.api.http import sse
from baton_serving.runtime.messages import TokenOutput
from baton_serving.runtime.requests import ChoiceOutput


def output(index: int, token_ids: list[int], completion_tokens: int) -> ChoiceOutput:
    return ChoiceOutput(index, "", TokenOutput(rid="r", token_ids=token_ids, completion_tokens=completion_tokens))


def test_an_event_names_choice_position_and_tokens() -> None:
    assert sse.event({"a": "ü\n"}, output(2, [7, 8], 19)) == 'id: [2,17,7,8]\ndata: {"a":"ü\\n"}\n\n'.encode()


def test_an_event_may_bring_no_token() -> None:
    assert sse.stream_id(output(0, [], 5)) == b"id: [0,5]\n"


def test_an_event_of_no_output_has_no_id() -> None:
    assert sse.event([1]) == b"data: [1]\n\n"
    assert sse.raw_event(b"{}") == b"data: {}\n\n"
