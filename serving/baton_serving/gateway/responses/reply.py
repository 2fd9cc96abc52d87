"""The response object, and a chat completion as one."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from baton_serving.gateway.responses.request import ResponsesRequest

Item = dict[str, Any]


def fresh_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"


@dataclass
class ResponseObject:
    """What a response says of itself, in whatever state it is."""

    request: ResponsesRequest
    id: str = field(default_factory=lambda: fresh_id("resp"))
    created_at: int = field(default_factory=lambda: int(time.time()))
    model: str = ""
    output: list[Item] = field(default_factory=list)
    usage: dict[str, Any] | None = None

    def as_dict(self, status: str, error: Mapping[str, Any] | None = None) -> dict[str, Any]:
        request = self.request
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "background": False,
            "error": error,
            "incomplete_details": details,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": self.model or request.model or "",
            "output": self.output,
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "text": {"format": (request.text and request.text.format) or {"type": "text"}},
            "tool_choice": request.tool_choice or "auto",
            "tools": msgspec.to_builtins(request.tools or []),
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": "disabled",
            "usage": self.usage,
            "user": request.user,
        }


def completed(request: ResponsesRequest, chat: Mapping[str, Any]) -> dict[str, Any]:
    """The response that a whole chat completion amounts to."""
    response = ResponseObject(request, model=chat["model"], usage=usage_of(chat.get("usage")))
    choice = chat["choices"][0]
    status = status_of(choice["finish_reason"])
    message = choice["message"]
    if message.get("content"):
        response.output.append(message_item(fresh_id("msg"), message["content"], status))
    for call in message.get("tool_calls") or []:
        function = call["function"]
        response.output.append(
            call_item(fresh_id("fc"), call["id"], function["name"], function["arguments"], "completed")
        )
    return response.as_dict(status)


def status_of(finish_reason: str | None) -> str:
    return "incomplete" if finish_reason == "length" else "completed"


def message_item(item_id: str, text: str, status: str) -> Item:
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": [text_part(text)]}


def text_part(text: str) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def call_item(item_id: str, call_id: str, name: str, arguments: str, status: str) -> Item:
    return {
        "id": item_id,
        "type": "function_call",
        "status": status,
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
    }


def usage_of(usage: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    details = usage.get("prompt_tokens_details") or {}
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": details.get("cached_tokens", 0)},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
