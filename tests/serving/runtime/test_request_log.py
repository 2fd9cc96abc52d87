"""How talkative each level is."""

from __future__ import annotations

import logging

import pytest
from support.tiny_tokenizer import tiny_tokenizer

from baton_serving.runtime.request_log import SHORT, RequestLog
from baton_serving.runtime.requests import Choice, GenerateRequest, RequestRecord
from baton_serving.sampling.params import SamplingParams

TOKENIZER = tiny_tokenizer()
ALWAYS = {"rid", "route", "outcome", "prompt_tokens", "cached_tokens", "completion_tokens", "seconds"}


def record(prompt: str, answer: str) -> RequestRecord:
    request = GenerateRequest(
        "r1", [TOKENIZER.encode(prompt)], [Choice(0, SamplingParams(seed=3))], route="/generate", received=100.0
    )
    made = RequestRecord.of(request)
    made.output_ids = [TOKENIZER.encode(answer)]
    made.texts = [[answer]]
    made.outcome, made.finished = "stop", 102.5
    return made


def logged(level: int, what: RequestRecord, caplog: pytest.LogCaptureFixture) -> dict[str, object]:
    caplog.set_level(logging.INFO)
    RequestLog(level, TOKENIZER.vocabulary).finished(what)
    values: dict[str, object] = caplog.records[-1].__dict__["fields"]
    return values


@pytest.mark.parametrize(
    ("level", "more"), [(0, set()), (1, {"choices", "params"}), (2, {"choices", "params", "prompts", "answers"})]
)
def test_each_level_adds_to_the_one_below(level: int, more: set[str], caplog: pytest.LogCaptureFixture) -> None:
    values = logged(level, record("hello world", "one two"), caplog)
    assert set(values) == ALWAYS | more
    assert values["seconds"] == 2.5
    assert values["completion_tokens"] == len(TOKENIZER.encode("one two"))


def test_level_2_cuts_and_level_3_does_not(caplog: pytest.LogCaptureFixture) -> None:
    long = "hello world " * SHORT
    short = logged(2, record(long, long), caplog)
    assert (short["prompts"], short["answers"]) == ([long[:SHORT]], [long[:SHORT]])
    whole = logged(3, record(long, long), caplog)
    assert (whole["prompts"], whole["answers"]) == ([long], [long])


def test_an_error_and_a_trace_are_named(caplog: pytest.LogCaptureFixture) -> None:
    what = record("a", "b")
    what.outcome, what.message, what.first_token = "queue_full", "full", 100.5
    values = logged(0, what, caplog)
    assert (values["outcome"], values["message"], values["first_token_after"]) == ("queue_full", "full", 0.5)
