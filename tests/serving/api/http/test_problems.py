"""Errors in OpenAI's shape."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

import pytest
from support.api_world import api_world, says
from support.http import events, post

from baton_serving.api.http.problems import error_body, error_response
from baton_serving.errors import (
    ERRORS_BY_CODE,
    BatonError,
    Cancelled,
    InternalError,
    InvalidRequest,
    NotFound,
    QueueFull,
    Unauthorized,
    Unavailable,
)
from baton_serving.runtime.messages import TokenOutput
from baton_serving.runtime.requests import ChoiceOutput, GenerateRequest


@pytest.mark.parametrize("code", sorted(ERRORS_BY_CODE))
def test_every_error_has_the_shape(code: str) -> None:
    error = ERRORS_BY_CODE[code]("what and what to do")
    body = json.loads(error_body(error))
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["message"], body["error"]["code"]) == ("what and what to do", code)
    assert error_response(error).status_code == error.status


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("x", "n"), "invalid_request_error"),
        (Unauthorized("x"), "authentication_error"),
        (NotFound("x"), "not_found_error"),
        (QueueFull("x"), "rate_limit_error"),
        (Cancelled("x"), "invalid_request_error"),
        (InternalError("x"), "server_error"),
    ],
)
def test_the_type_follows_the_status(error: BatonError, kind: str) -> None:
    assert json.loads(error_body(error))["error"]["type"] == kind


def test_whoever_may_try_again_hears_when() -> None:
    assert error_response(QueueFull("x", retry_after=2.2)).headers["retry-after"] == "3"
    assert error_response(Unavailable("x")).headers["retry-after"] == "1"
    assert "retry-after" not in error_response(InvalidRequest("x")).headers


def test_the_field_is_named() -> None:
    assert json.loads(error_body(InvalidRequest("x", "messages[0].content")))["error"]["param"] == "messages[0].content"


async def broken(request: GenerateRequest) -> AsyncGenerator[ChoiceOutput, None]:
    raise KeyError("a secret of the inside")
    yield


async def half_broken(request: GenerateRequest) -> AsyncGenerator[ChoiceOutput, None]:
    yield ChoiceOutput(0, "one", TokenOutput(rid="r", token_ids=[5], completion_tokens=1))
    raise KeyError("a secret of the inside")


async def test_a_fault_of_ours_tells_the_client_nothing_of_the_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    async with api_world(says("ok")) as world:
        monkeypatch.setattr(world.manager, "generate", broken)
        for stream in (False, True):
            answer = await post(f"{world.url}/v1/completions", {"prompt": "a", "stream": stream})
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
            assert "secret" not in answer.text
        monkeypatch.setattr(world.manager, "generate", half_broken)
        got = await events(f"{world.url}/v1/completions", {"prompt": "a", "stream": True})
        assert got[-1].data["error"]["code"] == "internal_error"
        assert "secret" not in str(got[-1].data)
