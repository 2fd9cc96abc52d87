"""Stop strings across pieces, against a naive search of the whole text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from baton_serving.runtime.stop_matcher import StopMatcher

TEXTS = st.text("ab😀", max_size=24)
STOPS = st.lists(st.text("ab😀", min_size=1, max_size=5), min_size=1, max_size=4)


def naive(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the stop that completes first, the longest of those that complete together."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({min(place, len(text)) for place in places} | {len(text)})
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@given(TEXTS, STOPS, st.lists(st.integers(0, 24)))
def test_any_cut_finds_what_a_search_of_the_whole_finds(text: str, stops: list[str], places: list[int]) -> None:
    matcher = StopMatcher(stops)
    shown = ""
    for piece in cut(text, places):
        safe, stop = matcher.feed(piece)
        shown += safe
        if stop is not None:
            assert (shown, stop) == naive(text, stops)
            return
    assert (shown + matcher.flush(), None) == naive(text, stops)


@given(TEXTS, STOPS, st.lists(st.integers(0, 24)))
def test_what_is_shown_does_not_depend_on_the_cut(text: str, stops: list[str], places: list[int]) -> None:
    whole, pieces = StopMatcher(stops), StopMatcher(stops)
    at_once, stop = whole.feed(text)
    shown, found = "", None
    for piece in cut(text, places):
        if found is None:
            safe, found = pieces.feed(piece)
            shown += safe
    assert (shown, found, pieces.held) == (at_once, stop, whole.held)


@given(TEXTS, STOPS)
def test_no_more_is_held_than_may_begin_a_stop(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    _, stop = matcher.feed(text)
    if stop is None:
        beginnings = [text[start:] for start in range(len(text)) if any(s.startswith(text[start:]) for s in stops)]
        assert matcher.held == max(beginnings, key=len, default="")
