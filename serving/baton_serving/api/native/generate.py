"""POST /generate, with requests and responses shaped like SGLang's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from msgspec import structs
from starlette.requests import Request
from starlette.responses import Response

from baton_serving.api.extras import generate_request, origin_of
from baton_serving.api.http.answer import answer
from baton_serving.api.http.body import read_json, typed
from baton_serving.api.native.render import NativeRenderer
from baton_serving.api.openai.render import check_generates
from baton_serving.api.protocol.native import GenerateBody
from baton_serving.api.state import service_of
from baton_serving.errors import InvalidRequest
from baton_serving.runtime.messages import LogprobOptions
from baton_serving.sampling.validate import NATIVE

T = TypeVar("T")

_MAX_TOP_LOGPROBS = 128
_MAX_LOGPROB_IDS = 1024


async def generate(request: Request) -> Response:
    """Continue one prompt or a batch, whole or as a stream."""
    service = service_of(request)
    body = typed(await read_json(request, service.options.max_body_bytes), GenerateBody)
    check_generates(service.options)
    texts, batch = _prompts(body)
    count = len(texts)
    sampling = _each(body.sampling_params, count, "sampling_params", {})
    dialect = NATIVE if body.text is None else replace(NATIVE, prompt_field="text")
    prompts, choices = await service.intake.choices(texts, sampling, dialect)
    logprobs = _logprob_options(body, [len(prompt) for prompt in prompts])
    for per_prompt in logprobs:
        if per_prompt is not None:
            service.intake.check_ids(per_prompt.token_ids, "token_ids_logprob")
    stream = bool(body.stream)
    if body.baton_resume is not None and not (stream and service.options.stream_output):  # it is said again, too
        logprobs = [None if one is None else structs.replace(one, replay=True) for one in logprobs]
    choices = [replace(choice, logprobs=logprobs[choice.prompt]) for choice in choices]
    wanted = generate_request(origin_of(request), body, service.intake, prompts, choices, stream=stream)
    renderer = NativeRenderer(
        wanted,
        service.intake.vocabulary,
        service.options,
        batch=batch or len(choices) > 1,
        with_text=bool(body.return_text_in_logprobs),
        timings=bool(body.baton_timings),
    )
    return await answer(request, service.manager.generate(wanted), renderer, stream=stream)


def _prompts(body: GenerateBody) -> tuple[list[str | list[int]], bool]:
    """The prompts, and whether they came as a batch."""
    if (body.text is None) == (body.input_ids is None):
        raise InvalidRequest("send either text or input_ids", param="text")
    if isinstance(body.text, str):
        return [body.text], False
    if body.text is not None:
        if not body.text:
            raise InvalidRequest("text is an empty list: send at least one prompt", param="text")
        return list(body.text), True
    items = body.input_ids or []
    ids = [item for item in items if isinstance(item, int)]
    if ids and len(ids) != len(items):
        raise InvalidRequest("input_ids mixes token ids and lists of them: send one kind", param="input_ids")
    if ids or not items:
        return [ids], False
    return [item for item in items if not isinstance(item, int)], True


def _each(value: T | list[T] | None, count: int, name: str, default: T) -> list[T]:
    """One value for each of `count` prompts."""
    if value is None:
        return [default] * count
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise InvalidRequest(f"{name} has {len(value)} items for {count} prompts: send one for each", param=name)
    return value


def _logprob_options(body: GenerateBody, lengths: list[int]) -> list[LogprobOptions | None]:
    """What log-probabilities each prompt's choices want."""
    count = len(lengths)
    wanted = _each(body.return_logprob, count, "return_logprob", False)
    starts = _each(body.logprob_start_len, count, "logprob_start_len", -1)
    tops = _each(body.top_logprobs_num, count, "top_logprobs_num", 0)
    ids = _id_lists(body.token_ids_logprob, count)
    return [
        _options(start, top, tuple(token_ids), length) if want else None
        for want, start, top, token_ids, length in zip(wanted, starts, tops, ids, lengths, strict=True)
    ]


def _options(start: int, top: int, token_ids: tuple[int, ...], prompt_length: int) -> LogprobOptions:
    if not -1 <= start <= prompt_length:
        raise InvalidRequest(
            f"logprob_start_len must be between -1 and the prompt's {prompt_length} tokens", param="logprob_start_len"
        )
    if not 0 <= top <= _MAX_TOP_LOGPROBS:
        raise InvalidRequest(f"top_logprobs_num must be between 0 and {_MAX_TOP_LOGPROBS}", param="top_logprobs_num")
    if len(token_ids) > _MAX_LOGPROB_IDS:
        raise InvalidRequest(f"token_ids_logprob takes at most {_MAX_LOGPROB_IDS} ids", param="token_ids_logprob")
    return LogprobOptions(start=-1 if start == prompt_length else start, top=top, token_ids=token_ids)


def _id_lists(value: list[int | list[int]] | None, count: int) -> list[list[int]]:
    """The asked-for ids of each prompt, from one list for all or a list of lists."""
    if not value:
        return [[]] * count
    flat: list[Any] = [item for item in value if isinstance(item, int)]
    nested = [item for item in value if not isinstance(item, int)]
    if flat and nested:
        raise InvalidRequest("token_ids_logprob mixes ids and lists of them: send one kind", param="token_ids_logprob")
    return [flat] * count if flat else _each(nested, count, "token_ids_logprob", [])
