"""The three routes a benchmark can speak to: bodies to send, and what an event of the answer says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from baton_serving.bench.workload import Item


@dataclass(frozen=True)
class Event:
    """One event of a streamed answer. `tokens`: it brings new ones. Counts are 0 where the event does not tell."""

    tokens: bool = False
    finished: bool = False
    error: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled; with `ignore_eos` they have exactly the length asked for."""

    temperature: float = 0.0
    ignore_eos: bool = True


@dataclass(frozen=True)
class Route:
    """`body` makes the request's JSON, `read` reads the data of one event, `done` ends a complete stream."""

    path: str
    body: Callable[[Item, str, Sampling], dict[str, object]]
    read: Callable[[bytes], Event]
    done: bytes = b"[DONE]"


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str = ""
    delta: _Delta | None = None
    finish_reason: str | None = None


class _OpenAIEvent(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: object = None


class _NativeMeta(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: object = None


class _NativeEvent(msgspec.Struct):
    meta_info: _NativeMeta | None = None
    error: object = None


def _openai_options(item: Item, model: str, sampling: Sampling) -> dict[str, object]:
    options: dict[str, object] = {
        "model": model,
        "max_tokens": item.output_tokens,
        "temperature": sampling.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if sampling.ignore_eos:
        options["ignore_eos"] = True
    return options


def _completions_body(item: Item, model: str, sampling: Sampling) -> dict[str, object]:
    return {"prompt": list(item.prompt), **_openai_options(item, model, sampling)}


def _chat_body(item: Item, model: str, sampling: Sampling) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": item.text}], **_openai_options(item, model, sampling)}


def _native_body(item: Item, model: str, sampling: Sampling) -> dict[str, object]:
    params = {
        "max_new_tokens": item.output_tokens,
        "temperature": sampling.temperature,
        "ignore_eos": sampling.ignore_eos,
    }
    return {"input_ids": list(item.prompt), "sampling_params": params, "stream": True}


def _read_openai(data: bytes) -> Event:
    event = msgspec.json.decode(data, type=_OpenAIEvent)
    usage = event.usage or _Usage()
    return Event(
        tokens=any(_has_text(choice) for choice in event.choices),
        finished=any(choice.finish_reason is not None for choice in event.choices),
        error="" if event.error is None else str(event.error),
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
    )


def _has_text(choice: _Choice) -> bool:
    delta = choice.delta or _Delta()
    return bool(choice.text or delta.content or delta.reasoning_content)


def _read_native(data: bytes) -> Event:
    event = msgspec.json.decode(data, type=_NativeEvent)
    meta = event.meta_info or _NativeMeta()
    failed = isinstance(meta.finish_reason, dict) and meta.finish_reason.get("type") == "abort"
    return Event(
        tokens=meta.completion_tokens > 0,
        finished=meta.finish_reason is not None and not failed,
        error=str(event.error) if event.error is not None else str(meta.finish_reason) if failed else "",
        prompt_tokens=meta.prompt_tokens,
        completion_tokens=meta.completion_tokens,
    )


ROUTES: Mapping[str, Route] = {
    "completions": Route("/v1/completions", _completions_body, _read_openai),
    "chat": Route("/v1/chat/completions", _chat_body, _read_openai),
    "native": Route("/generate", _native_body, _read_native),
}
