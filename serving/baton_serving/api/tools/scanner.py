"""Reads one call spelt as a JSON object, `{"name": "f", "arguments": {…}}`, character by character."""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass
from typing import Final

_ARGUMENTS: Final = ("arguments", "parameters")
_KEYS: Final = frozenset({"name", "type", "id", *_ARGUMENTS})


@dataclass
class CallDelta:
    """What came of call number `index`: its name once, its arguments (JSON text) in any number of pieces."""

    index: int
    name: str | None = None
    arguments: str = ""


class Structure:
    """Where in a JSON text one is: `depth` counts open brackets; nothing in a string does."""

    def __init__(self) -> None:
        self.depth = 0
        self.in_string = False
        self._escaped = False

    def feed(self, character: str) -> None:
        if self.in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            else:
                self.in_string = character != '"'
        elif character == '"':
            self.in_string = True
        elif character in "{[":
            self.depth += 1
        elif character in "}]":
            self.depth -= 1


class CallScanner:
    """`done` after the closing brace; `broken` when this is no call of one of `names`: then `raw` is plain text.

    A name is given out as soon as it is complete, an object of arguments as it comes from then on.
    """

    def __init__(self, names: Container[str]) -> None:
        self.done = False
        self.broken = False
        self.raw = ""
        self.name: str | None = None
        self._names = names
        self._at = Structure()
        self._key: str | None = None
        self._text = ""  # of the key or value under way
        self._ready = ""  # arguments not taken yet
        self._named = False  # the name was taken

    def feed(self, character: str) -> None:
        """The next character, until `done` or `broken`."""
        self.raw += character
        was_open = self._at.depth > 0
        self._at.feed(character)
        if not was_open:
            self.broken = character != "{" and not character.isspace()
        elif self._at.depth == 0:
            self._end_value()
            self.done = True
            self.broken = self.broken or self.name is None
        elif self._at.depth > 1 or self._at.in_string:
            self._take(character)
        elif character == ":" and self._key is None:
            self._begin_value()
        elif character == ",":
            self._end_value()
        else:
            self._take(character)

    def take(self, index: int) -> CallDelta | None:
        """What is new of the call since the last time, None when nothing is."""
        if self.broken or self.name is None:
            return None
        delta = CallDelta(index, None if self._named else self.name, self._ready)
        if self.done and not self._named and not delta.arguments:
            delta.arguments = "{}"
        elif self._named and not delta.arguments:
            return None
        self._named, self._ready = True, ""
        return delta

    def _take(self, character: str) -> None:
        begins = not self._text and character == "{"
        goes_on = self._text.startswith("{") and (self._at.depth > 1 or character == "}")
        if self._key in _ARGUMENTS and (begins or goes_on):
            self._ready += character
        self._text += "" if character.isspace() and not self._text else character

    def _begin_value(self) -> None:
        key = _loaded(self._text)
        self._key = key if isinstance(key, str) else None
        self._text = ""
        self.broken = self._key not in _KEYS

    def _end_value(self) -> None:
        key, text = self._key, self._text.strip()
        self._key, self._text = None, ""
        if key == "name":
            name = _loaded(text)
            self.name = name if isinstance(name, str) and name in self._names else None
            self.broken = self.broken or self.name is None
        elif key in _ARGUMENTS and not text.startswith("{"):
            value = _loaded(text)  # some models send the arguments as a text that holds JSON
            self._ready += value if isinstance(value, str) else "{}"


def _loaded(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None
