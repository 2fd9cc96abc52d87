"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from baton_serving.api.extras import generate_request, origin_of
from baton_serving.api.http import sse
from baton_serving.api.http.answer import answer
from baton_serving.api.http.body import read_json, typed
from baton_serving.api.openai.logprobs import chat_logprobs
from baton_serving.api.openai.render import (
    ResponseHead,
    check_model,
    check_top,
    extension,
    finish_reason,
    response_head,
)
from baton_serving.api.protocol.common import ChoiceExtension
from baton_serving.api.protocol.openai import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatRequest,
    Delta,
    Message,
    Usage,
)
from baton_serving.api.state import service_of
from baton_serving.errors import InvalidRequest
from baton_serving.runtime.messages import LogprobOptions
from baton_serving.runtime.requests import ChoiceOutput
from baton_serving.runtime.tokenizer import ChatPrompt
from baton_serving.runtime.vocabulary import Vocabulary
from baton_serving.sampling.validate import CHAT


async def chat_completions(request: Request) -> Response:
    """Answer a conversation, whole or as a stream."""
    service = service_of(request)
    values = await read_json(request, service.options.max_body_bytes)
    fields = typed(values, ChatRequest)
    check_model(fields.model, service.options)
    _refuse_unsupported(fields)
    prompts, choices = await service.intake.choices([_chat_prompt(fields, values)], [values], CHAT)
    logprobs = _logprob_options(fields)
    if logprobs is not None:
        choices = [replace(choice, logprobs=logprobs) for choice in choices]
    stream = bool(fields.stream)
    generate = generate_request(origin_of(request), fields, service.intake, prompts, choices, stream=stream)
    head = response_head("chatcmpl", generate, fields, fields.stream_options, service.options)
    vocabulary = service.intake.vocabulary if logprobs is not None else None
    return await answer(request, service.manager.generate(generate), ChatRenderer(head, vocabulary), stream=stream)


class ChatRenderer:
    """The chat formats. `vocabulary` is given when log-probabilities are wanted."""

    def __init__(self, head: ResponseHead, vocabulary: Vocabulary | None) -> None:
        self._head = head
        self._vocabulary = vocabulary
        self._begun: set[int] = set()

    def event(self, output: ChoiceOutput) -> bytes:
        """The role before a choice's first text, the text with its token ids, the finish reason in its own event."""
        reason = finish_reason(output)
        self._head.begin(output)
        self._head.usage.add(output.index, output.tokens)
        parts: list[bytes] = []
        if output.index not in self._begun and not self._head.resumed:
            parts.append(self._chunk(output.index, Delta(role="assistant", content="")))
        self._begun.add(output.index)
        logprobs = self._logprobs(output)
        said = bool(output.text) or logprobs is not None
        if said or reason is None:
            parts.append(self._chunk(output.index, Delta(content=output.text), logprobs, None, output))
        if reason is not None:
            extra = extension(self._head, output)
            parts.append(self._chunk(output.index, Delta(), None, reason, None if said else output, extra))
        return b"".join(parts)

    def end(self) -> bytes:
        if not self._head.include_usage:
            return b""
        return sse.event(self._message([], self._head.usage.usage()))

    def whole(self, answers: list[ChoiceOutput]) -> bytes:
        choices = [
            ChatChoice(
                index=answer.index,
                message=AssistantMessage(answer.text),
                logprobs=self._logprobs(answer),
                finish_reason=finish_reason(answer) or "stop",
                baton=extension(self._head, answer),
            )
            for answer in answers
        ]
        self._head.begin(answers[0])
        usage = self._head.usage.of((answer.index, answer.tokens) for answer in answers)
        head = self._head
        return msgspec.json.encode(
            ChatCompletion(head.id, head.created, head.model, choices, usage, head.system_fingerprint)
        )

    def _logprobs(self, output: ChoiceOutput) -> ChatLogprobs | None:
        if self._vocabulary is None or not output.tokens.logprobs:
            return None
        return chat_logprobs(self._vocabulary, output.tokens.logprobs)

    def _chunk(
        self,
        index: int,
        delta: Delta,
        logprobs: ChatLogprobs | None = None,
        reason: str | None = None,
        output: ChoiceOutput | None = None,
        extra: ChoiceExtension | UnsetType = UNSET,
    ) -> bytes:
        return sse.event(self._message([ChatChunkChoice(index, delta, logprobs, reason, extra)]), output)

    def _message(self, choices: list[ChatChunkChoice], usage: Usage | None = None) -> ChatChunk:
        head = self._head
        return ChatChunk(head.id, head.created, head.model, choices, head.system_fingerprint, usage)


def _logprob_options(fields: ChatRequest) -> LogprobOptions | None:
    top = check_top(fields.top_logprobs, "top_logprobs")
    if top and not fields.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
    return LogprobOptions(top=top) if fields.logprobs else None


def _refuse_unsupported(fields: ChatRequest) -> None:
    """What would be broken if it were ignored: the client relies on the answer's form."""
    if fields.response_format is not None and fields.response_format.type != "text":
        raise InvalidRequest(
            f"response_format {fields.response_format.type!r} is not supported by this worker: use 'text'",
            param="response_format",
        )
    if fields.tool_choice not in (None, "none", "auto"):
        raise InvalidRequest("tool_choice must be 'none' or 'auto': calls cannot be forced", param="tool_choice")


def _chat_prompt(fields: ChatRequest, values: Mapping[str, Any]) -> ChatPrompt:
    if not fields.messages:
        raise InvalidRequest("messages is empty: send at least one", param="messages")
    last = fields.messages[-1]
    if fields.continue_final_message and last.role != "assistant":
        raise InvalidRequest(
            "continue_final_message needs the last message to be the assistant's", param="continue_final_message"
        )
    raw: list[dict[str, Any]] = values["messages"]
    messages = [
        {**sent, "content": _text(message, index)}
        for index, (message, sent) in enumerate(zip(fields.messages, raw, strict=True))
    ]
    return ChatPrompt(
        messages=messages,
        tools=fields.tools if fields.tools and fields.tool_choice != "none" else None,
        continue_final_message=bool(fields.continue_final_message),
        template_kwargs=fields.chat_template_kwargs or {},
    )


def _text(message: Message, index: int) -> str | None:
    """A message's content as one text, its parts on lines of their own."""
    if message.content is None or isinstance(message.content, str):
        return message.content
    for number, part in enumerate(message.content):
        if part.type != "text" or part.text is None:
            raise InvalidRequest(
                f"messages[{index}].content[{number}] is of type {part.type!r}: this model reads text only",
                param=f"messages[{index}].content[{number}]",
            )
    return "\n".join(part.text for part in message.content if part.text is not None)
