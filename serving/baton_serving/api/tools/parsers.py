"""How model families spell tool calls in their text, as state machines that are fed any cut of it.

What was given out after k characters depends on those characters alone; so a stream that moves to another worker goes
on where it stood once the earlier text was fed to a new parser.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Final

from baton_serving.api.tools.scanner import CallDelta, CallScanner, Structure

_LONGEST_GAP: Final = 16  # white space held back, since none is shown before a call


@dataclass
class Parsed:
    """What may be shown: text for the reader, and pieces of calls."""

    content: str = ""
    calls: list[CallDelta] = field(default_factory=list)


class ToolParser(ABC):
    """One answer's text. `marker` opens a call; a subclass says what stands behind it."""

    marker = ""
    keeps_special_tokens = False  # the marker is a special token of the vocabulary, which is otherwise not shown

    def __init__(self, names: Container[str]) -> None:
        self.calls = 0
        self._names = names
        self._out = Parsed()
        self._held = ""  # what may begin a marker
        self._after_call = False
        self._scanner = CallScanner(names)
        self._state: Callable[[str], None] = self._text

    def feed(self, text: str) -> Parsed:
        """What follows from the next piece of text."""
        for character in text:
            self._state(character)
        return self._taken()

    def finish(self) -> Parsed:
        """What is left once the text is over: a call that was never completed is shown as it stands."""
        if self._state == self._text:
            self._show(self._held.rstrip() if self._after_call else self._held)
        elif self._state == self._call:
            self._show("" if self._scanner.name else self._opened() + self._scanner.raw)
        else:
            self._show(self._unfinished())
        self._held = ""
        return self._taken()

    @abstractmethod
    def _open(self) -> None:
        """The marker is complete."""

    @abstractmethod
    def _closed(self) -> None:
        """A call's JSON is complete."""

    def _opened(self) -> str:
        """The text that led to the call under way."""
        return self.marker

    def _unfinished(self) -> str:
        """The text of a call that was begun, where a subclass has states of its own."""
        return ""

    def _text(self, character: str) -> None:
        self._held += character
        for start in range(len(self._held) + 1):
            rest = self._held[start:]
            begun = rest.lstrip()
            if self.marker.startswith(begun) and len(rest) - len(begun) <= _LONGEST_GAP:
                self._show(self._held[:start])
                self._held = rest
                break
        if self._held.lstrip() == self.marker:
            self._held = ""
            self._open()

    def _begin_call(self) -> None:
        self._scanner = CallScanner(self._names)
        self._state = self._call

    def _call(self, character: str) -> None:
        scanner = self._scanner
        scanner.feed(character)
        if scanner.broken:
            self._back_to_text(self._opened() + scanner.raw)
            return
        delta = scanner.take(self.calls)
        if delta is not None:
            self._give(delta)
        if scanner.done:
            self.calls += 1
            self._closed()

    def _back_to_text(self, shown: str = "") -> None:
        self._show(shown)
        self._after_call = not shown
        self._state = self._text

    def _give(self, delta: CallDelta) -> None:
        """Pieces of one call that come together are one piece."""
        calls = self._out.calls
        if calls and calls[-1].index == delta.index:
            calls[-1].arguments += delta.arguments
        else:
            calls.append(delta)

    def _show(self, text: str) -> None:
        if self._after_call:
            text = text.lstrip()
        self._after_call = self._after_call and not text
        self._out.content += text

    def _taken(self) -> Parsed:
        taken, self._out = self._out, Parsed()
        return taken


class HermesParser(ToolParser):
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Hermes and Qwen models write it."""

    marker = "<tool_call>"
    _END: Final = "</tool_call>"

    def _open(self) -> None:
        self._begin_call()

    def _closed(self) -> None:
        self._ending = ""
        self._state = self._end

    def _end(self, character: str) -> None:
        self._ending = (self._ending + character).lstrip()
        if self._ending == self._END:
            self._back_to_text()
        elif not self._END.startswith(self._ending):
            rest = self._ending
            self._back_to_text()
            for one in rest:
                self._state(one)


class MistralParser(ToolParser):
    """`[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`, and the later `[TOOL_CALLS]NAME[ARGS]{…}`."""

    marker = "[TOOL_CALLS]"
    keeps_special_tokens = True
    _ARGS: Final = "[ARGS]"

    def _open(self) -> None:
        self._name = ""
        self._listed = False
        self._state = self._choose

    def _opened(self) -> str:
        return "" if self._listed and self.calls else self.marker + ("[" if self._listed else "")

    def _unfinished(self) -> str:
        return self.marker + self._name if self._state in (self._choose, self._named) else ""

    def _choose(self, character: str) -> None:
        """A list begins, or a name."""
        if character == "[" and not self._name:
            self._listed = True
            self._begin_call()
        elif not character.isspace():
            self._state = self._named
            self._named(character)

    def _named(self, character: str) -> None:
        if character != "{":
            self._name += character
            if len(self._name) > 256 or character == "\n":
                self._back_to_text(self.marker + self._name)
            return
        name = self._name.removesuffix(self._ARGS).strip()
        if name not in self._names:
            self._back_to_text(self.marker + self._name + character)
            return
        self._at = Structure()
        self._give(CallDelta(self.calls, name))
        self._state = self._bare_arguments
        self._bare_arguments(character)

    def _bare_arguments(self, character: str) -> None:
        self._at.feed(character)
        self._give(CallDelta(self.calls, None, character))
        if self._at.depth == 0:
            self.calls += 1
            self._back_to_text()

    def _closed(self) -> None:
        self._state = self._between

    def _between(self, character: str) -> None:
        if character == ",":
            self._begin_call()
        elif not character.isspace():
            self._back_to_text()
            if character != "]":
                self._state(character)


class Llama3Parser(ToolParser):
    """An answer that is `{"name": …, "parameters": {…}}` from its start on, or behind `<|python_tag|>`; `;` between."""

    marker = "<|python_tag|>"

    def __init__(self, names: Container[str]) -> None:
        super().__init__(names)
        self._marked = False
        self._state = self._start

    def _opened(self) -> str:
        return self.marker if self._marked else ""

    def _start(self, character: str) -> None:
        if character == "{":
            self._begin_call()
            self._call(character)
        elif not character.isspace():
            self._state = self._text
            self._text(character)

    def _open(self) -> None:
        self._marked = True
        self._begin_call()

    def _closed(self) -> None:
        self._marked = False
        self._state = self._between

    def _between(self, character: str) -> None:
        if character == ";":
            self._state = self._start
        elif character == "{":
            self._begin_call()
            self._call(character)
        elif not character.isspace():
            self._back_to_text()
            self._state(character)


PARSERS: Final[Mapping[str, type[ToolParser]]] = {
    "hermes": HermesParser,
    "llama3": Llama3Parser,
    "mistral": MistralParser,
    "qwen": HermesParser,
    "qwen25": HermesParser,
}
