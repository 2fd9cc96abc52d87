"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType, structs
from starlette.requests import Request
from starlette.responses import Response

from baton_serving.api.extras import generate_request, origin_of
from baton_serving.api.http import sse
from baton_serving.api.http.answer import answer
from baton_serving.api.http.body import read_json, typed
from baton_serving.api.openai.logprobs import chat_logprobs
from baton_serving.api.openai.render import (
    ResponseHead,
    check_generates,
    check_model,
    check_top,
    earlier_text,
    extension,
    finish_reason,
    response_head,
)
from baton_serving.api.options import AppOptions
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
    EarlierCall,
    Message,
    Usage,
)
from baton_serving.api.state import service_of
from baton_serving.api.tools.answers import ToolAnswers, function_names
from baton_serving.api.tools.parsers import PARSERS
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
    check_generates(service.options)
    check_model(fields.model, service.options)
    _refuse_unsupported(fields)
    prompts, choices = await service.intake.choices([_chat_prompt(fields, values)], [values], CHAT)
    logprobs = _logprob_options(fields)
    if logprobs is not None:
        choices = [replace(choice, logprobs=logprobs) for choice in choices]
    kind = _tool_parser(fields, service.options)
    if kind is not None and PARSERS[kind].keeps_special_tokens:
        choices = [replace(one, params=structs.replace(one.params, skip_special_tokens=False)) for one in choices]
    stream = bool(fields.stream)
    generate = generate_request(origin_of(request), fields, service.intake, prompts, choices, stream=stream)
    head = response_head("chatcmpl", generate, fields, fields.stream_options, service.options)
    vocabulary = service.intake.vocabulary
    earlier = partial(earlier_text, generate, vocabulary)
    tools = None if kind is None else ToolAnswers(kind, function_names(fields.tools or []), head.id, earlier)
    renderer = ChatRenderer(head, vocabulary if logprobs is not None else None, earlier, tools)
    return await answer(request, service.manager.generate(generate), renderer, stream=stream)


class ChatRenderer:
    """The chat formats. `vocabulary` is given when log-probabilities are wanted, `tools` when calls are.

    `earlier(index)` is the text that a moved answer already had.
    """

    def __init__(
        self,
        head: ResponseHead,
        vocabulary: Vocabulary | None,
        earlier: Callable[[int], str],
        tools: ToolAnswers | None = None,
    ) -> None:
        self._head = head
        self._vocabulary = vocabulary
        self._earlier = earlier
        self._tools = tools
        self._begun: set[int] = set()

    def event(self, output: ChoiceOutput) -> bytes:
        """The role before a choice's first text, the text with its token ids, the finish reason in its own event."""
        reason = finish_reason(output)
        self._head.begin(output)
        self._head.usage.add(output.index, output.tokens)
        delta = self._delta(output, last=reason is not None)
        parts: list[bytes] = []
        if output.index not in self._begun | self._head.resumed:
            parts.append(self._chunk(output.index, Delta(role="assistant", content="")))
        self._begun.add(output.index)
        logprobs = self._logprobs(output)
        said = bool(delta.content or delta.tool_calls) or logprobs is not None
        if said or reason is None:
            parts.append(self._chunk(output.index, delta, logprobs, None, output))
        if reason is not None:
            extra = extension(self._head, output)
            reason = self._reason(output.index, reason)
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
                message=self._assistant(answer),
                logprobs=self._logprobs(answer),
                finish_reason=self._reason(answer.index, finish_reason(answer) or "stop"),
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

    def _delta(self, output: ChoiceOutput, *, last: bool) -> Delta:
        if self._tools is None:
            return Delta(content=output.text)
        content, calls = self._tools.feed(output.index, output.text, last=last)
        return Delta(content=content if content or not calls else None, tool_calls=calls)

    def _assistant(self, answer: ChoiceOutput) -> AssistantMessage:
        text = self._earlier(answer.index) + answer.text
        if self._tools is None:
            return AssistantMessage(text)
        content, calls = self._tools.whole(answer.index, text)
        return AssistantMessage(content, tool_calls=calls)

    def _reason(self, index: int, reason: str) -> str:
        """A model that made its calls stopped for their results."""
        called = self._tools is not None and self._tools.called(index)
        return "tool_calls" if called and reason == "stop" else reason

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


def _tool_parser(fields: ChatRequest, options: AppOptions) -> str | None:
    """How the answer's calls are spelt, where there can be any."""
    return options.tool_call_parser if fields.tools and fields.tool_choice != "none" else None


def _chat_prompt(fields: ChatRequest, values: Mapping[str, Any]) -> ChatPrompt:
    if not fields.messages:
        raise InvalidRequest("messages is empty: send at least one", param="messages")
    last = fields.messages[-1]
    if fields.continue_final_message and last.role != "assistant":
        raise InvalidRequest(
            "continue_final_message needs the last message to be the assistant's", param="continue_final_message"
        )
    function_names(fields.tools or [])
    raw: list[dict[str, Any]] = values["messages"]
    messages = [
        {**sent, "content": _text(message, index), **_earlier_calls(sent, index)}
        for index, (message, sent) in enumerate(zip(fields.messages, raw, strict=True))
    ]
    return ChatPrompt(
        messages=messages,
        tools=fields.tools if fields.tools and fields.tool_choice != "none" else None,
        continue_final_message=bool(fields.continue_final_message),
        template_kwargs=fields.chat_template_kwargs or {},
    )


def _earlier_calls(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The calls of an earlier answer with their arguments as objects, which is what chat templates take."""
    calls = message.get("tool_calls")
    if not calls:
        return {}
    try:
        typed_calls = msgspec.convert(calls, list[EarlierCall])
        return {
            "tool_calls": [
                {**sent, "function": {**sent["function"], "arguments": _arguments(call.function.arguments)}}
                for sent, call in zip(calls, typed_calls, strict=True)
            ]
        }
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        name = f"messages[{index}].tool_calls"
        raise InvalidRequest(f"{name} must be calls as an answer had them: {error}", param=name) from error


def _arguments(text: str | dict[str, Any]) -> dict[str, Any]:
    return text if isinstance(text, dict) else msgspec.json.decode(text, type=dict[str, Any])


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
