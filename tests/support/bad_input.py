"""What a client can get wrong in a body, for workers and for the gateway before them."""

from __future__ import annotations

from typing import Any

import pytest
from support.api_world import CONTEXT, VOCAB
from support.http import HELLO

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
NATIVE = "/generate"


def raw(name: str, body: bytes) -> Any:
    return pytest.param(body, id=name)


# Bodies that are no JSON object.
BODIES = [
    raw("empty", b""),
    raw("malformed", b'{"messages": [}'),
    raw("truncated", b'{"messages": [{"role"'),
    raw("trailing", b'{"prompt": "a"} x'),
    raw("no object", b'["prompt"]'),
    raw("null", b"null"),
    raw("NaN", b'{"prompt": "a", "temperature": NaN}'),
    raw("infinite", b'{"prompt": "a", "temperature": 1e999}'),
    raw("invalid UTF-8", b'{"prompt": "\xff\xfe"}'),
    raw("encoded surrogate", b'{"prompt": "\xed\xa0\x80"}'),
    raw("lone surrogate", b'{"prompt": "\\ud800"}'),
    raw("deep", b'{"prompt": ' + b"[" * 12_000),
    raw("deep and ignored", b'{"prompt": "a", "x": ' + b"[" * 12_000 + b"]" * 12_000 + b"}"),
]


def case(path: str, param: str, name: str = "", **fields: Any) -> Any:
    good: dict[str, dict[str, Any]] = {CHAT: {"messages": HELLO}, TEXT: {"prompt": "a"}, NATIVE: {"text": "a"}}
    return pytest.param(path, {**good[path], **fields}, param, id=f"{path} {name or param}"[:60])


CALLED = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}
MANY_STOPS = ["x"] * 2_000

CASES = [
    case(CHAT, "messages", "messages of the wrong type", messages="hello"),
    case(CHAT, "messages", "no messages", messages=[]),
    case(CHAT, "messages", "null messages", messages=None),
    case(CHAT, "messages", "unknown role", messages=[{"role": "robot", "content": "a"}]),
    case(CHAT, "messages[0].content", "content of the wrong type", messages=[{"role": "user", "content": 5}]),
    case(CHAT, "messages[0]", "no role", messages=[{"content": "a"}]),
    case(
        CHAT, "messages[0].content[0]", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]
    ),
    case(CHAT, "stream", stream="yes"),
    case(CHAT, "n", "n=0", n=0),
    case(CHAT, "n", "n=10000", n=10_000),
    case(CHAT, "temperature", "negative temperature", temperature=-1),
    case(CHAT, "temperature", "temperature of the wrong type", temperature="hot"),
    case(CHAT, "top_p", top_p=2),
    case(CHAT, "max_tokens", "negative max_tokens", max_tokens=-1),
    case(CHAT, "max_tokens", "zero max_tokens", max_tokens=0),
    case(CHAT, "max_tokens", "huge max_tokens", max_tokens=10**9),
    case(CHAT, "max_tokens", "max_tokens beyond any integer", max_tokens=10**30),
    case(CHAT, "max_completion_tokens", max_completion_tokens=1.5),
    case(CHAT, "stop", "2,000 stops", stop=MANY_STOPS),
    case(CHAT, "stop", "empty stop", stop=""),
    case(CHAT, "stop", "stop of the wrong type", stop={"a": 1}),
    case(CHAT, "logit_bias", "bias for a token that does not exist", logit_bias={str(VOCAB): 1}),
    case(CHAT, "logit_bias", "bias for no token", logit_bias={"hello": 1}),
    case(CHAT, "logit_bias", "bias out of range", logit_bias={"5": 1000}),
    case(CHAT, "seed", seed="lucky"),
    case(CHAT, "top_logprobs", "top_logprobs alone", top_logprobs=2),
    case(CHAT, "top_logprobs", "too many top_logprobs", logprobs=True, top_logprobs=21),
    case(CHAT, "response_format", response_format={"type": "json_object"}),
    case(CHAT, "tool_choice", tool_choice="required"),
    case(CHAT, "tools[0]", "a tool that is none", tools=[{"type": "retrieval"}]),
    case(CHAT, "tools[0].function.name", tools=[{"type": "function", "function": {}}]),
    case(
        CHAT,
        "tools[0].function.parameters",
        tools=[{"type": "function", "function": {"name": "f", "parameters": "none"}}],
    ),
    case(
        CHAT, "messages[0].tool_calls", "calls without a function", messages=[{**CALLED, "tool_calls": [{"id": "1"}]}]
    ),
    case(CHAT, "messages[0].tool_calls", "arguments that are no JSON", messages=[CALLED]),
    case(CHAT, "continue_final_message", continue_final_message=True),
    case(CHAT, "chat_template_kwargs", chat_template_kwargs={"chat_template": "x"}),
    case(CHAT, "stream_options.include_usage", stream_options={"include_usage": "yes"}),
    case(CHAT, "baton_resume.output_ids", "resume for more choices", baton_resume={"output_ids": [[1], [2]]}),
    case(CHAT, "baton_resume.output_ids", "resume with no such token", baton_resume={"output_ids": [[VOCAB]]}),
    case(CHAT, "baton_resume.output_ids", "resume too long", max_tokens=1, baton_resume={"output_ids": [[1, 2]]}),
    case(CHAT, "bootstrap_room", "rooms for others", bootstrap_room=[1, 2]),
    case(CHAT, "rid", rid=""),
    case(CHAT, "priority", priority=2**40),
    case(TEXT, "prompt", "empty prompt", prompt=""),
    case(TEXT, "prompt", "empty list", prompt=[]),
    case(TEXT, "prompt", "list with an empty text", prompt=["a", ""]),
    case(TEXT, "prompt", "empty ids", prompt=[[]]),
    case(TEXT, "prompt", "mixed", prompt=["a", 1]),
    case(TEXT, "prompt", "null", prompt=None),
    case(TEXT, "prompt", "no such token", prompt=[VOCAB]),
    case(TEXT, "prompt", "negative token", prompt=[-1]),
    case(TEXT, "prompt", "token beyond any integer", prompt=[10**30]),
    case(TEXT, "prompt", "longer than the context", prompt=[5] * (CONTEXT + 1)),
    case(TEXT, "prompt", "a text longer than the context", prompt="a b " * CONTEXT),
    case(TEXT, "max_tokens", "prompt and answer together too long", prompt=[5] * 500, max_tokens=100),
    case(TEXT, "logprobs", logprobs=-1),
    case(TEXT, "suffix", suffix="end"),
    case(TEXT, "best_of", best_of=3),
    case(NATIVE, "text", "neither text nor ids", text=None),
    case(NATIVE, "text", "both", input_ids=[1]),
    case(NATIVE, "text", "empty batch", text=[]),
    case(NATIVE, "text", "empty text", text=""),
    case(NATIVE, "input_ids", "no ids", text=None, input_ids=[]),
    case(NATIVE, "input_ids", "mixed", text=None, input_ids=[1, [2]]),
    case(NATIVE, "temprature", "misspelt parameter", sampling_params={"temprature": 0}),
    case(NATIVE, "max_new_tokens", sampling_params={"max_new_tokens": -5}),
    case(NATIVE, "sampling_params", "parameters for other prompts", sampling_params=[{}, {}]),
    case(NATIVE, "top_logprobs_num", return_logprob=True, top_logprobs_num=1000),
    case(NATIVE, "logprob_start_len", return_logprob=True, logprob_start_len=50),
    case(NATIVE, "token_ids_logprob", "no such token", return_logprob=True, token_ids_logprob=[VOCAB]),
    case(NATIVE, "token_ids_logprob", "mixed", return_logprob=True, token_ids_logprob=[1, [2]]),
    case(NATIVE, "n", "too many answers", text=["a"] * 40, sampling_params={"n": 128}),
]
