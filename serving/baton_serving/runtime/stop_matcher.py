"""Finds stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache


class StopMatcher:
    """Passes text through until one of `stops` is complete, holding back what may turn out to begin one.

    The stop that completes first wins, as if the text came character by character; of two that complete together, the
    longer. What `feed` returns therefore depends on the text so far alone, never on how it was cut into pieces.
    Cost: O(characters x stops), one Knuth-Morris-Pratt automaton per stop.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [(stop, _borders(stop)) for stop in stops]
        self._matched = [0] * len(stops)
        self._first_characters = {stop[0] for stop in stops}
        self.held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """The text that is now safe to show, and the stop string that follows it when one is complete."""
        if not self.held and self._first_characters.isdisjoint(text):
            return text, None
        buffer = self.held + text
        for position in range(len(self.held), len(buffer)):
            stop = self._advance(buffer[position])
            if stop is not None:
                self.held = ""
                return buffer[: position + 1 - len(stop)], stop
        safe = len(buffer) - max(self._matched)
        self.held = buffer[safe:]
        return buffer[:safe], None

    def flush(self) -> str:
        """The held text, when no more will come."""
        held, self.held = self.held, ""
        return held

    def _advance(self, character: str) -> str | None:
        """Move every automaton by one character; the longest stop that is now complete."""
        found: str | None = None
        for index, (stop, borders) in enumerate(self._stops):
            matched = self._matched[index]
            while matched and stop[matched] != character:
                matched = borders[matched - 1]
            if stop[matched] == character:
                matched += 1
            self._matched[index] = matched
            if matched == len(stop) and (found is None or len(stop) > len(found)):
                found = stop
        return found


@lru_cache(maxsize=1024)
def _borders(pattern: str) -> tuple[int, ...]:
    """For each prefix of `pattern`, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(pattern)
    length = 0
    for position in range(1, len(pattern)):
        while length and pattern[position] != pattern[length]:
            length = borders[length - 1]
        if pattern[position] == pattern[length]:
            length += 1
        borders[position] = length
    return tuple(borders)
