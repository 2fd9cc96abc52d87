"""Tool calls found in text, however the text is cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton_serving.api.tools.parsers import PARSERS, ToolParser
from baton_serving.api.tools.scanner import CallDelta

NAMES = frozenset({"weather", "search"})
PARIS = '{"city": "Paris"}'
ODD = '{"q": "a {\\"b\\": [1, \\"}\\"]} </tool_call> ;", "n": [1, {"x": null}]}'

Calls = list[tuple[str, str]]


def parse(parser: ToolParser, *pieces: str) -> tuple[str, Calls]:
    """The text for the reader and the calls, from any cut of a text."""
    text, calls = "", dict[int, list[str]]()
    for parsed in [*map(parser.feed, pieces), parser.finish()]:
        text += parsed.content
        for delta in parsed.calls:
            if delta.name is not None:
                assert delta.index == len(calls)
                calls[delta.index] = [delta.name, ""]
            calls[delta.index][1] += delta.arguments
    return text, [(name, arguments) for name, arguments in calls.values()]


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


# kind, text, what the reader sees, calls
CASES: list[tuple[str, str, str, Calls]] = [
    ("hermes", "just text <b> 1 < 2 <tool", "just text <b> 1 < 2 <tool", []),
    ("hermes", hermes("weather", PARIS), "", [("weather", PARIS)]),
    ("qwen", "Let me look.\n" + hermes("search", ODD), "Let me look.", [("search", ODD)]),
    (
        "hermes",
        hermes("weather", PARIS) + "\n" + hermes("search", "{}") + "\n",
        "",
        [("weather", PARIS), ("search", "{}")],
    ),
    ("hermes", hermes("weather", PARIS) + "\n\nDone.", "Done.", [("weather", PARIS)]),
    ("hermes", '<tool_call>{"arguments": {"a": 1} , "name": "search"}</tool_call>', "", [("search", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "search"}</tool_call>', "", [("search", "{}")]),
    (
        "hermes",
        '<tool_call>{"name": "search", "arguments": "{\\"a\\": 1}"}</tool_call>',
        "",
        [("search", '{"a": 1}')],
    ),
    ("hermes", '<tool_call>{"name": "search", "arguments": null}</tool_call>', "", [("search", "{}")]),
    ("hermes", hermes("launch", "{}"), hermes("launch", "{}"), []),
    ("hermes", "<tool_call>not json</tool_call>", "<tool_call>not json</tool_call>", []),
    ("hermes", '<tool_call>{"nam', '<tool_call>{"nam', []),
    ("hermes", '<tool_call>{"name": "search", "arguments": {"a": "b', "", [("search", '{"a": "b')]),
    ("llama3", '{"name": "weather", "parameters": {"city": "Paris"}}', "", [("weather", PARIS)]),
    (
        "llama3",
        '<|python_tag|>{"type": "function", "name": "weather", "parameters": {}}; {"name": "search"}',
        "",
        [("weather", "{}"), ("search", "{}")],
    ),
    ("llama3", '{"answer": 42}', '{"answer": 42}', []),
    ("llama3", "It is {warm}.", "It is {warm}.", []),
    (
        "mistral",
        'Sure. [TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}}, {"name": "search"}]',
        "Sure.",
        [("weather", PARIS), ("search", "{}")],
    ),
    ("mistral", "[TOOL_CALLS]weather[ARGS]" + PARIS, "", [("weather", PARIS)]),
    ("mistral", "[TOOL_CALLS]weather" + PARIS + "[TOOL_CALLS]search{}", "", [("weather", PARIS), ("search", "{}")]),
    ("mistral", "[TOOL_CALLS]launch{}", "[TOOL_CALLS]launch{}", []),
    ("mistral", "[TOOL_CALLS]wea", "[TOOL_CALLS]wea", []),
    ("mistral", "[TOOL_CALLS][{}]", "[TOOL_CALLS][{}]", []),
    ("mistral", "[1, 2]", "[1, 2]", []),
]


@pytest.mark.parametrize(("kind", "text", "shown", "calls"), CASES, ids=[f"{c[0]} {i}" for i, c in enumerate(CASES)])
def test_whole_and_letter_by_letter(kind: str, text: str, shown: str, calls: Calls) -> None:
    assert parse(PARSERS[kind](NAMES), text) == (shown, calls)
    assert parse(PARSERS[kind](NAMES), *text) == (shown, calls)


@given(st.sampled_from(sorted(PARSERS)), st.data())
def test_any_text_in_any_cut_gives_the_same_and_nothing_raises(kind: str, data: st.DataObject) -> None:
    bits = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", '{"name": "search", ', "\n"]
    bits += ['"arguments": {"a": 1}', "}", "]", "[", ",", ";", '"', "\\", "{", "x", " ", '"parameters": "é"', ":"]
    pieces = data.draw(st.lists(st.sampled_from(bits), max_size=12))
    text = "".join(pieces)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=4)))
    cut = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(PARSERS[kind](NAMES), *cut) == parse(PARSERS[kind](NAMES), text)


def test_arguments_stream_as_they_come() -> None:
    parser = PARSERS["hermes"](NAMES)
    assert parser.feed('<tool_call>{"name": "search"').calls == []
    assert parser.feed(', "arguments"').calls == [CallDelta(0, "search", "")]
    assert parser.feed(': {"q": "lon').calls == [CallDelta(0, None, '{"q": "lon')]
    assert parser.feed('g"}').calls == [CallDelta(0, None, 'g"}')]
    assert parser.feed("}</tool_call>").calls == []


def test_another_worker_goes_on_after_any_letter() -> None:
    text = "Look. " + hermes("search", ODD) + hermes("weather", PARIS) + " Done."
    whole = parse(PARSERS["hermes"](NAMES), text)
    for at in range(len(text)):
        first, second = PARSERS["hermes"](NAMES), PARSERS["hermes"](NAMES)
        sent = first.feed(text[:at])
        second.feed(text[:at])
        rest = [second.feed(text[at:]), second.finish()]
        arguments = "".join(delta.arguments for parsed in [sent, *rest] for delta in parsed.calls if delta.index == 0)
        assert json.loads(arguments) == json.loads(ODD)
        assert sent.content + "".join(parsed.content for parsed in rest) == whole[0]
