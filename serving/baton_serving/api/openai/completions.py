"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from baton_serving.api.extras import generate_request, origin_of
from baton_serving.api.http import sse
from baton_serving.api.http.answer import answer
from baton_serving.api.http.body import read_json, typed
from baton_serving.api.openai.logprobs import CompletionLogprobsBuilder
from baton_serving.api.openai.render import (
    ResponseHead,
    check_generates,
    check_model,
    check_top,
    earlier_text,
    extension,
    finish_reason,
    prompts_of,
    response_head,
)
from baton_serving.api.protocol.openai import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    Usage,
)
from baton_serving.api.state import service_of
from baton_serving.errors import InvalidRequest
from baton_serving.runtime.messages import LogprobOptions
from baton_serving.runtime.requests import ChoiceOutput, GenerateRequest
from baton_serving.runtime.vocabulary import TextDecoder, Vocabulary
from baton_serving.sampling.validate import COMPLETIONS


async def completions(request: Request) -> Response:
    """Continue one or several prompts, whole or as a stream."""
    service = service_of(request)
    values = await read_json(request, service.options.max_body_bytes)
    fields = typed(values, CompletionRequest)
    check_generates(service.options)
    check_model(fields.model, service.options)
    _refuse_unsupported(fields, values.get("n"))
    only_prompt = bool(fields.echo) and values.get("max_tokens") == 0
    if only_prompt:
        values = {**values, "max_tokens": 1}
    texts = prompts_of(fields.prompt, "prompt")
    prompts, choices = await service.intake.choices(texts, [values] * len(texts), COMPLETIONS)
    logprobs = _logprob_options(fields)
    choices = [replace(choice, logprobs=logprobs) for choice in choices]
    stream = bool(fields.stream)
    generate = generate_request(origin_of(request), fields, service.intake, prompts, choices, stream=stream)
    head = response_head("cmpl", generate, fields, fields.stream_options, service.options)
    vocabulary = service.intake.vocabulary
    skip = choices[0].params.skip_special_tokens
    echoes = _echoes(texts, vocabulary, skip_special_tokens=skip) if fields.echo else None
    renderer = CompletionRenderer(head, generate, vocabulary, echoes, only_prompt=only_prompt)
    return await answer(request, service.manager.generate(generate), renderer, stream=stream)


class CompletionRenderer:
    """The completion formats. `echoes` are the prompts' texts when they are to be repeated.

    `only_prompt`: the answer's one token was generated for the prompt's log-probabilities alone and is not shown.
    """

    def __init__(
        self,
        head: ResponseHead,
        request: GenerateRequest,
        vocabulary: Vocabulary,
        echoes: Sequence[str] | None,
        *,
        only_prompt: bool,
    ) -> None:
        self._head = head
        self._request = request
        self._vocabulary = vocabulary
        self._echoes = echoes
        self._only_prompt = only_prompt
        self._logprobs: dict[int, CompletionLogprobsBuilder] = {}
        self._begun: set[int] = set()

    def event(self, output: ChoiceOutput) -> bytes:
        reason = finish_reason(output)
        self._head.begin(output)
        self._head.usage.add(output.index, output.tokens)
        first = output.index not in self._begun
        self._begun.add(output.index)
        choice = self._choice(output, reason, echo=first and output.index not in self._head.resumed)
        return sse.event(self._message([choice]), output)

    def end(self) -> bytes:
        if not self._head.include_usage:
            return b""
        return sse.event(self._message([], self._head.usage.usage()))

    def whole(self, answers: list[ChoiceOutput]) -> bytes:
        self._head.begin(answers[0])
        usage = self._head.usage.of((answer.index, answer.tokens) for answer in answers)
        choices = [self._whole_choice(answer) for answer in answers]
        return msgspec.json.encode(self._message(choices, usage))

    def _whole_choice(self, output: ChoiceOutput) -> CompletionChoice:
        choice = self._choice(output, finish_reason(output), echo=True)
        earlier = self._earlier_text(output.index)
        if earlier:
            at = len(self._echoes[self._request.choices[output.index].prompt]) if self._echoes is not None else 0
            choice.text = choice.text[:at] + earlier + choice.text[at:]
        return choice

    def _choice(self, output: ChoiceOutput, reason: str | None, *, echo: bool) -> CompletionChoice:
        wanted = self._request.choices[output.index]
        prompt = self._echoes[wanted.prompt] if self._echoes is not None and echo else ""
        text = prompt if self._only_prompt else prompt + output.text
        logprobs = None if wanted.logprobs is None else self._token_logprobs(output, echo=echo)
        return CompletionChoice(output.index, text, logprobs, reason, extension(self._head, output))

    def _token_logprobs(self, output: ChoiceOutput, *, echo: bool) -> CompletionLogprobs:
        builder = self._logprobs.get(output.index)
        if builder is None:
            builder = self._builder(output.index)
            self._logprobs[output.index] = builder
        answer = [] if self._only_prompt else output.tokens.logprobs
        if self._echoes is None or not echo:
            return builder.build(answer)
        prompt = self._request.prompts[self._request.choices[output.index].prompt]
        return builder.build([*(output.tokens.prompt_logprobs or []), *answer], first_token=prompt[0])

    def _builder(self, index: int) -> CompletionLogprobsBuilder:
        skip = self._request.choices[index].params.skip_special_tokens
        decoder = self._vocabulary.decoder((), skip_special_tokens=skip)
        return CompletionLogprobsBuilder(self._vocabulary, decoder, len(self._earlier_text(index)))

    def _earlier_text(self, index: int) -> str:
        return earlier_text(self._request, self._vocabulary, index)

    def _message(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        head = self._head
        return Completion(head.id, head.created, head.model, choices, head.system_fingerprint, usage)


def _logprob_options(fields: CompletionRequest) -> LogprobOptions | None:
    if fields.logprobs is None:
        return None
    top = check_top(fields.logprobs, "logprobs")
    return LogprobOptions(start=0 if fields.echo else -1, top=top)


def _refuse_unsupported(fields: CompletionRequest, n: object) -> None:
    """What would be broken if it were ignored."""
    if fields.suffix:
        raise InvalidRequest("suffix is not supported: put the text before the gap into prompt", param="suffix")
    if fields.best_of is not None and fields.best_of != (n if isinstance(n, int) else 1):
        raise InvalidRequest("best_of must equal n: answers are not ranked", param="best_of")


def _echoes(prompts: Sequence[str | list[int]], vocabulary: Vocabulary, *, skip_special_tokens: bool) -> list[str]:
    """The prompts' texts: as they came, or what their tokens say."""
    return [
        prompt
        if isinstance(prompt, str)
        else _text_of(prompt, vocabulary.decoder((), skip_special_tokens=skip_special_tokens))
        for prompt in prompts
    ]


def _text_of(ids: Sequence[int], decoder: TextDecoder) -> str:
    return "".join([decoder.feed(token_id) for token_id in ids])
