"""The tool calls of one response: a parser per choice, and what its chunks and messages say."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from msgspec import UNSET, UnsetType

from baton_serving.api.protocol.openai import FunctionDelta, ToolCall, ToolCallDelta
from baton_serving.api.tools.parsers import PARSERS, Parsed, ToolParser
from baton_serving.errors import InvalidRequest

_ID_LENGTH: Final = 9  # what Mistral's chat templates insist on; others take any
_LETTERS: Final = string.ascii_letters + string.digits


class ToolAnswers:
    """Parsers of a response's choices. `earlier(index)` is the text that the client of a moved stream already has."""

    def __init__(
        self, kind: str, names: frozenset[str], response_id: str, earlier: Callable[[int], str] = lambda index: ""
    ) -> None:
        self._kind = kind
        self._names = names
        self._response_id = response_id
        self._earlier = earlier
        self._parsers: dict[int, ToolParser] = {}

    def feed(self, index: int, text: str, *, last: bool) -> tuple[str, list[ToolCallDelta] | UnsetType]:
        """What the next text of choice `index` lets show: text, and pieces of calls."""
        parser = self._parsers.get(index)
        if parser is None:
            parser = self._parsers[index] = PARSERS[self._kind](self._names)
            parser.feed(self._earlier(index))
        parsed = parser.feed(text)
        if last:
            rest = parser.finish()
            parsed = Parsed(parsed.content + rest.content, parsed.calls + rest.calls)
        deltas = [
            ToolCallDelta(delta.index, FunctionDelta(delta.arguments))
            if delta.name is None
            else ToolCallDelta(
                delta.index,
                FunctionDelta(delta.arguments, delta.name),
                call_id(self._response_id, index, delta.index),
                "function",
            )
            for delta in parsed.calls
        ]
        return parsed.content, deltas or UNSET

    def called(self, index: int) -> bool:
        """Whether choice `index` holds a call so far."""
        return index in self._parsers and self._parsers[index].calls > 0

    def whole(self, index: int, text: str) -> tuple[str | None, list[ToolCall] | UnsetType]:
        """Text and calls of a whole answer; an answer of calls alone has no text."""
        parser = self._parsers[index] = PARSERS[self._kind](self._names)
        calls: dict[int, tuple[str, list[str]]] = {}
        content = ""
        for parsed in (parser.feed(text), parser.finish()):
            content += parsed.content
            for delta in parsed.calls:
                _, pieces = calls.setdefault(delta.index, (delta.name or "", []))
                pieces.append(delta.arguments)
        found = [
            ToolCall(call_id(self._response_id, index, number), FunctionDelta("".join(pieces), name))
            for number, (name, pieces) in calls.items()
        ]
        return (content or None, found) if found else (content, UNSET)


def call_id(response_id: str, choice: int, number: int) -> str:
    """The same on every worker that goes on with the response."""
    digest = hashlib.blake2b(f"{response_id}/{choice}/{number}".encode(), digest_size=8).digest()
    value, letters = int.from_bytes(digest), ""
    for _ in range(_ID_LENGTH):
        value, letter = divmod(value, len(_LETTERS))
        letters += _LETTERS[letter]
    return letters


def function_names(tools: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Names of the functions that a request offers. Raises InvalidRequest naming the tool that is none."""
    names = set()
    for index, tool in enumerate(tools):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise InvalidRequest(f"tools[{index}] must be {{type: 'function', function: …}}", param=f"tools[{index}]")
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise InvalidRequest(f"tools[{index}].function.name must be a text", param=f"tools[{index}].function.name")
        if not isinstance(function.get("parameters", {}), dict):
            raise InvalidRequest(
                f"tools[{index}].function.parameters must be a JSON schema", param=f"tools[{index}].function.parameters"
            )
        names.add(name)
    return frozenset(names)
