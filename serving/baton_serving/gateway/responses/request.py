"""A body of `/v1/responses` as a body of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from baton_serving.api.http.body import typed
from baton_serving.errors import InvalidRequest

_NO_STORE: Final = "this gateway keeps no responses: send the whole conversation as input"
_TEXT_PARTS: Final = frozenset({"input_text", "output_text", "text"})


class FunctionTool(msgspec.Struct, omit_defaults=True):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextFormat(msgspec.Struct):
    format: dict[str, Any] | None = None


class ResponsesRequest(msgspec.Struct):
    """The fields that mean something here; others go to the worker as they are."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    tools: list[FunctionTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextFormat | None = None
    metadata: dict[str, str] | None = None
    truncation: str | None = None
    reasoning: Any = None
    include: list[str] | None = None
    user: str | None = None


_KNOWN: Final = frozenset(ResponsesRequest.__struct_fields__)


def read_request(body: Mapping[str, Any]) -> ResponsesRequest:
    """Raises `InvalidRequest` naming the field that is wrong or would need a store."""
    request = typed(dict(body), ResponsesRequest)
    if request.store:
        raise InvalidRequest(f"store: {_NO_STORE}", param="store")
    if request.background:
        raise InvalidRequest("background: this gateway answers at once only; leave it out", param="background")
    for name in ("previous_response_id", "conversation", "prompt"):
        if getattr(request, name) is not None:
            raise InvalidRequest(f"{name}: {_NO_STORE}", param=name)
    if request.truncation not in (None, "disabled"):
        raise InvalidRequest("truncation must be 'disabled': shorten the input yourself", param="truncation")
    return request


def chat_body(request: ResponsesRequest, body: Mapping[str, Any]) -> dict[str, Any]:
    """The chat completion that answers the request. Raises `InvalidRequest`."""
    chat: dict[str, Any] = {name: value for name, value in body.items() if name not in _KNOWN}
    chat["messages"] = _messages(request)
    if request.model is not None:
        chat["model"] = request.model
    for name, value in (
        ("max_completion_tokens", request.max_output_tokens),
        ("temperature", request.temperature),
        ("top_p", request.top_p),
        ("tools", [_tool(tool, index) for index, tool in enumerate(request.tools or [])] or None),
        ("tool_choice", _tool_choice(request.tool_choice)),
        ("response_format", request.text.format if request.text is not None else None),
    ):
        if value is not None:
            chat[name] = value
    if request.stream:
        chat["stream"] = True
        chat["stream_options"] = {"include_usage": True}
    return chat


def _tool(tool: FunctionTool, index: int) -> dict[str, Any]:
    if tool.type != "function" or not tool.name:
        raise InvalidRequest(
            f"tools[{index}] is of type {tool.type!r}: only functions with a name are served", param=f"tools[{index}]"
        )
    function = msgspec.to_builtins(tool)
    del function["type"]
    return {"type": "function", "function": function}


def _tool_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


def _messages(request: ResponsesRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*messages, {"role": "user", "content": request.input}]
    for index, item in enumerate(request.input):
        _add(messages, item, f"input[{index}]")
    return messages


def _add(messages: list[dict[str, Any]], item: Mapping[str, Any], name: str) -> None:
    match item.get("type", "message"):
        case "message":
            role = item.get("role")
            if not isinstance(role, str):
                raise InvalidRequest(f"{name}.role must be a text", param=f"{name}.role")
            content = _text(item.get("content"), f"{name}.content")
            messages.append({"role": "system" if role == "developer" else role, "content": content})
        case "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            function = {key: _string(item, key, name) for key in ("name", "arguments")}
            call = {"id": _string(item, "call_id", name), "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
        case "function_call_output":
            content = _text(item.get("output"), f"{name}.output")
            messages.append({"role": "tool", "tool_call_id": _string(item, "call_id", name), "content": content})
        case "reasoning":
            pass  # an earlier answer's thoughts, which no template takes
        case kind:
            raise InvalidRequest(f"{name} is of type {kind!r}, which is not served", param=f"{name}.type")


def _string(item: Mapping[str, Any], key: str, name: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise InvalidRequest(f"{name}.{key} must be a text", param=f"{name}.{key}")
    return value


def _text(content: str | Sequence[Any] | None, name: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{name} must be a text or a list of parts", param=name)
    texts: list[str] = []
    for index, part in enumerate(content):
        text = part.get("text") if isinstance(part, dict) and part.get("type") in _TEXT_PARTS else None
        if not isinstance(text, str):
            raise InvalidRequest(f"{name}[{index}] must be a part with a text", param=f"{name}[{index}]")
        texts.append(text)
    return "\n".join(texts)
