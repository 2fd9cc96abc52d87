import pytest

from baton_serving.bench.protocols import ROUTES, Event, Sampling
from baton_serving.bench.workload import Item

ITEM = Item((5, 6), 9)


@pytest.mark.parametrize(
    ("route", "data", "expected"),
    [
        ("completions", b'{"choices":[{"index":0,"text":"a","finish_reason":null}]}', Event(tokens=True)),
        ("completions", b'{"choices":[{"text":"","finish_reason":"length"}]}', Event(finished=True)),
        (
            "completions",
            b'{"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":9}}',
            Event(prompt_tokens=2, completion_tokens=9),
        ),
        ("completions", b'{"error":{"message":"no"}}', Event(error="{'message': 'no'}")),
        ("chat", b'{"choices":[{"delta":{"role":"assistant","content":""}}]}', Event()),
        ("chat", b'{"choices":[{"delta":{"content":"a"}}],"usage":null}', Event(tokens=True)),
        ("chat", b'{"choices":[{"delta":{"reasoning_content":"hm"}}]}', Event(tokens=True)),
        (
            "native",
            b'{"text":"a","meta_info":{"prompt_tokens":2,"completion_tokens":1,"finish_reason":null}}',
            Event(tokens=True, prompt_tokens=2, completion_tokens=1),
        ),
        (
            "native",
            b'{"meta_info":{"prompt_tokens":2,"completion_tokens":9,"finish_reason":{"type":"length","length":9}}}',
            Event(tokens=True, finished=True, prompt_tokens=2, completion_tokens=9),
        ),
        (
            "native",
            b'{"meta_info":{"finish_reason":{"type":"abort","message":"gone"}}}',
            Event(error="{'type': 'abort', 'message': 'gone'}"),
        ),
    ],
)
def test_events(route: str, data: bytes, expected: Event) -> None:
    assert ROUTES[route].read(data) == expected


def test_bodies_carry_the_prompt_and_the_length() -> None:
    body = ROUTES["completions"].body(ITEM, "m", Sampling())
    assert (body["prompt"], body["max_tokens"], body["model"], body["ignore_eos"]) == ([5, 6], 9, "m", True)
    assert "ignore_eos" not in ROUTES["chat"].body(ITEM, "m", Sampling(ignore_eos=False))
    assert ROUTES["chat"].body(ITEM, "m", Sampling())["messages"] == [{"role": "user", "content": ITEM.text}]
    native = ROUTES["native"].body(ITEM, "", Sampling(0.5))
    assert native["input_ids"] == [5, 6]
    assert native["sampling_params"] == {"max_new_tokens": 9, "temperature": 0.5, "ignore_eos": True}
