"""Clients that people use, unchanged, against a gateway over real prefill and decode workers; streamed and not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from support.baton_processes import BatonProcess, BatonProcesses
from support.disaggregation import MODEL, Fleet

QUESTION = "The code for amber is 4711. What is the code for amber?"
ASKED: list[Any] = [{"role": "user", "content": QUESTION}]
ROOM = 24  # tokens of an answer

pytestmark = pytest.mark.xdist_group("fleet")


@pytest.fixture(scope="module")
def gateway(session_processes: BatonProcesses, shared_fleet: Fleet) -> Iterator[BatonProcess]:
    shared_fleet.revive()
    gateway = session_processes.gateway(shared_fleet.bootstrap, "--worker-wait", "30")
    yield gateway
    assert gateway.stop() == 0


@pytest.fixture
def client(gateway: BatonProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


@pytest.fixture(scope="module")
def answer(gateway: BatonProcess) -> str:
    """What every client must get."""
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        chat = client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=ROOM, temperature=0)
    text = chat.choices[0].message.content
    assert text
    return text


@pytest.mark.timeout(300)
def test_openai(client: openai.OpenAI, answer: str) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=ASKED, max_tokens=ROOM, temperature=0, n=2, logprobs=True, top_logprobs=2
    )
    chat = raw.parse()
    assert ">" in raw.headers["x-baton-route"]  # a pair answered
    assert [choice.message.content for choice in chat.choices] == [answer, answer]
    assert chat.choices[0].logprobs is not None
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=ASKED,
            max_tokens=ROOM,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == answer
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == chat.usage.prompt_tokens  # type: ignore[union-attr]
    prompt: dict[str, Any] = {"model": MODEL, "prompt": QUESTION, "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**prompt)
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**prompt, stream=True)) == (
        whole.choices[0].text
    )


@pytest.mark.timeout(300)
def test_openai_responses(client: openai.OpenAI, answer: str) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": QUESTION, "max_output_tokens": ROOM, "temperature": 0}
    whole = client.responses.create(**asked)
    assert whole.output_text == answer
    with client.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == answer
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")


@pytest.mark.timeout(300)
def test_litellm(gateway: BatonProcess, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would fetch a price list
    litellm = pytest.importorskip("litellm")  # seconds to import
    asked: dict[str, Any] = {
        "model": f"openai/{MODEL}",
        "api_base": f"{gateway.url}/v1",
        "api_key": "none",
        "messages": ASKED,
        "max_tokens": ROOM,
        "temperature": 0,
        "num_retries": 0,
    }
    assert litellm.completion(**asked).choices[0].message.content == answer
    chunks = litellm.completion(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer
    with pytest.raises(litellm.exceptions.NotFoundError):
        litellm.completion(**{**asked, "model": "openai/other"})


@pytest.mark.timeout(300)
def test_langchain(gateway: BatonProcess, answer: str) -> None:
    langchain = pytest.importorskip("langchain_openai")  # seconds to import
    chat = langchain.ChatOpenAI(
        model=MODEL,
        base_url=f"{gateway.url}/v1",
        api_key="none",
        temperature=0,
        max_retries=0,
        max_completion_tokens=ROOM,
        stream_usage=True,
    )
    message = chat.invoke(QUESTION)
    assert message.content == answer
    assert message.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == answer
    bound = chat.bind_tools([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}])
    assert isinstance(bound.invoke(QUESTION).content, str)


@pytest.mark.timeout(120)
def test_explain_names_the_pair_that_answered(client: openai.OpenAI) -> None:
    raw = client.completions.with_raw_response.create(model=MODEL, prompt="a", max_tokens=1)
    told = client.get(f"/baton/explain/{raw.headers['x-request-id']}", cast_to=object)
    assert json.dumps(told)
    assert told["attempts"][0]["prefill"]["worker"]  # type: ignore[index]
    assert told["attempts"][0]["transfer"]["transport"] == "mooncake tcp"  # type: ignore[index]
    assert told["attempts"][0]["transfer"]["bytes"] > 0  # type: ignore[index]
