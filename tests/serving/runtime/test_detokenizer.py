"""The detokenizer's state: text, stops and counts of every request, however the scheduler cuts its outputs."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scripted_scheduler import logprob_of
from support.tiny_tokenizer import tiny_tokenizer

from baton_serving.runtime.detokenizer import DetokenizerState, replayed_text
from baton_serving.runtime.messages import (
    Failure,
    Finish,
    StopFound,
    StreamState,
    TextOutput,
    TokenBatch,
    TokenOutput,
)
from baton_serving.runtime.outputs import is_terminal
from baton_serving.sampling.params import SamplingParams

VOCABULARY = tiny_tokenizer().vocabulary
END = 0
BYTES = {VOCABULARY.token_bytes(i): i for i in range(420)}


def ids_of(text: str) -> list[int]:
    return tiny_tokenizer().encode(text, add_special_tokens=False)


@dataclass
class Answer:
    """What the API would get of one request."""

    outputs: list[TextOutput] = field(default_factory=list)
    stops: list[StopFound] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.outputs)

    @property
    def token_ids(self) -> list[int]:
        return [token_id for output in self.outputs for token_id in output.tokens.token_ids]

    @property
    def last(self) -> TokenOutput:
        return self.outputs[-1].tokens


def run(
    tokens: list[int],
    params: SamplingParams | None = None,
    end: Finish | Failure | None = None,
    *,
    cuts: list[int] | None = None,
    stream: bool = True,
    interval: int = 1,
    resumed: list[int] | None = None,
) -> Answer:
    """One request through a fresh state: `tokens` cut before the positions `cuts` (all when None), then `end`."""
    state = DetokenizerState(VOCABULARY, interval)
    opened = StreamState(
        rid="r", prompt_tail=[5], params=params or SamplingParams(), stream=stream, output_ids=resumed or []
    )
    answer = Answer()
    ends = sorted({*(range(1, len(tokens)) if cuts is None else cuts), len(tokens)})
    start = 0
    for number, stop in enumerate(ends):
        last = stop == ends[-1]
        output = TokenOutput(
            rid="r",
            token_ids=tokens[start:stop],
            completion_tokens=len(resumed or []) + stop,
            logprobs=[logprob_of(token, 1) for token in tokens[start:stop]],
            finish=end if last and isinstance(end, Finish) else None,
            failure=end if last and isinstance(end, Failure) else None,
        )
        outputs, stops = state.process(TokenBatch(opened=[opened] if number == 0 else [], outputs=[output]))
        answer.outputs += outputs
        answer.stops += stops
        start = stop
    assert state.open_requests == (0 if answer.outputs and is_terminal(answer.last) else 1)
    return answer


def test_a_stream_says_each_token_at_once() -> None:
    answer = run([*ids_of("hello world"), END], end=Finish("stop", END))
    assert answer.text == "hello world"
    assert [len(output.tokens.token_ids) for output in answer.outputs] == [1] * len(answer.token_ids)
    assert answer.last.finish == Finish("stop", END)


def test_unstreamed_answers_come_in_one_piece() -> None:
    tokens = ids_of("hello world")
    answer = run(tokens, end=Finish("length"), stream=False)
    assert [(output.text, output.tokens.token_ids) for output in answer.outputs] == [("hello world", tokens)]
    assert len(answer.last.logprobs) == len(tokens)


def test_the_interval_counts_from_the_first_token() -> None:
    tokens = [BYTES[bytes([65 + i])] for i in range(8)]
    answer = run(tokens, end=Finish("length"), interval=3)
    assert [output.text for output in answer.outputs] == ["A", "BCD", "EFG", "H"]


def test_a_token_that_ends_the_answer_is_not_shown_unless_asked() -> None:
    tokens = ids_of("one two")
    assert run(tokens, end=Finish("stop", tokens[-1])).text == tiny_tokenizer().decode(tokens[:-1])
    kept = SamplingParams(no_stop_trim=True)
    assert run(tokens, kept, Finish("stop", tokens[-1])).text == "one two"


def test_special_tokens_are_shown_on_demand() -> None:
    params = SamplingParams(skip_special_tokens=False)
    assert run([END, *ids_of("a")], params, Finish("length")).text == "<|end|>a"


def test_bytes_of_an_unfinished_character_are_held_and_never_shown() -> None:
    emoji = [BYTES[bytes([byte])] for byte in "😀".encode()]
    answer = run([*ids_of("a"), *emoji[:3]], end=Finish("length"))
    assert answer.text == "a"
    assert answer.token_ids == [*ids_of("a"), *emoji[:3]]


@given(
    st.text("ab 😀", max_size=20), st.lists(st.text("ab 😀", min_size=1, max_size=4), min_size=1, max_size=3), st.data()
)
def test_stops_equal_a_naive_search_whatever_the_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    """Tokens here are single bytes, so that stops and characters end anywhere."""
    tokens = [BYTES[bytes([byte])] for byte in text.encode()]
    if not tokens:
        return
    cuts = data.draw(st.lists(st.integers(1, len(tokens)), max_size=6))
    params = SamplingParams(stop=tuple(stops))
    answer = run(tokens, params, Finish("length"), cuts=cuts, interval=data.draw(st.integers(1, 4)))
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        assert (answer.text, answer.token_ids, answer.last.finish) == (text, tokens, Finish("length"))
        return
    end, negative_length, stop = min(ends)
    assert answer.text == text[: end + negative_length]
    assert answer.last.finish == Finish("stop", stop)
    used = len(text[:end].encode())
    assert answer.token_ids == tokens[:used]
    assert answer.last.completion_tokens == used
    assert sum(len(output.tokens.logprobs) for output in answer.outputs) == used


def test_the_scheduler_hears_of_a_stop_once_and_later_tokens_are_dropped() -> None:
    tokens = ids_of("hello world, how are you today?")
    answer = run(tokens, SamplingParams(stop=("world",)))
    assert answer.text == "hello "
    assert answer.stops == [StopFound(rid="r", completion_tokens=answer.last.completion_tokens)]
    assert len(answer.token_ids) < len(tokens)


def test_a_stop_found_in_the_schedulers_last_output_needs_no_word_to_it() -> None:
    answer = run(ids_of("hello world"), SamplingParams(stop=("wor",)), Finish("length"), cuts=[])
    assert (answer.text, answer.stops) == ("hello ", [])


def test_the_stop_is_kept_on_demand() -> None:
    params = SamplingParams(stop=("wor",), no_stop_trim=True)
    assert run(ids_of("hello world"), params).text == "hello wor"


def test_held_text_is_shown_when_the_answer_ends() -> None:
    answer = run(ids_of("hello wo"), SamplingParams(stop=("world",)), Finish("length"))
    assert answer.text == "hello wo"


def test_stops_do_not_count_before_the_least_length() -> None:
    tokens = [BYTES[bytes([byte])] for byte in b"abcabc"]
    assert run(tokens, SamplingParams(stop=("b",), min_new_tokens=4)).text == "abca"


def test_a_failure_shows_no_held_text_since_another_worker_may_go_on() -> None:
    failure = Failure("unavailable", "gone")
    answer = run(ids_of("hello wo"), SamplingParams(stop=("world",)), failure)
    assert (answer.text, answer.last.failure) == ("hello ", failure)


def test_a_refusal_before_the_request_began_is_passed_on() -> None:
    refused = TokenOutput(rid="x", failure=Failure("queue_full", "full"))
    outputs, stops = DetokenizerState(VOCABULARY).process(TokenBatch(outputs=[refused]))
    assert (outputs, stops) == ([TextOutput(rid="x", text="", tokens=refused)], [])


@given(
    st.text("ab 😀", min_size=1, max_size=20), st.lists(st.text("ab 😀", min_size=1, max_size=4), max_size=2), st.data()
)
def test_a_resumed_stream_goes_on_where_the_first_broke_off(text: str, stops: list[str], data: st.DataObject) -> None:
    """The text of both legs together is that of an undisturbed stream, wherever the break was."""
    tokens = [BYTES[bytes([byte])] for byte in text.encode()]
    params = SamplingParams(stop=tuple(stops))
    whole = run(tokens, params, Finish("length"))
    broke = data.draw(st.integers(0, len(whole.outputs) - 1))
    first = whole.outputs[:broke]
    sent = [token_id for output in first for token_id in output.tokens.token_ids]
    second = run(tokens[len(sent) :], params, Finish("length"), resumed=sent)
    assert "".join(output.text for output in first) + second.text == whole.text
    assert sent + second.token_ids == whole.token_ids
    assert (second.last.finish, second.last.completion_tokens) == (whole.last.finish, whole.last.completion_tokens)
    assert replayed_text(VOCABULARY, [5], params, sent) == "".join(output.text for output in first)


def test_a_resumed_answer_that_had_stopped_ends_at_once() -> None:
    sent = ids_of("hello world")
    state = DetokenizerState(VOCABULARY)
    opened = StreamState(rid="r", prompt_tail=[], params=SamplingParams(stop=("hello",)), stream=True, output_ids=sent)
    outputs, stops = state.process(TokenBatch(opened=[opened]))
    assert [(output.text, output.tokens.finish) for output in outputs] == [("", Finish("stop", "hello"))]
    assert stops == [StopFound(rid="r", completion_tokens=outputs[0].tokens.completion_tokens)]
    assert state.open_requests == 0


@pytest.mark.parametrize("held", ["wo", "😀"])
def test_no_event_is_sent_for_text_that_is_all_held(held: str) -> None:
    tokens = [*ids_of("a"), *(BYTES[bytes([byte])] for byte in held.encode()[:-1])]
    answer = run(tokens, SamplingParams(stop=("wolf",)))
    assert [output.text for output in answer.outputs] == ["a"]
