"""The texts the demo models learn from."""

import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from train import arithmetic, recall, stories
from train.batches import ANSWER, CONTEXT, Batches, Phase, mark
from train.chats import END_OF_TURN, START_OF_TURN, chat_row, plain_row
from train.words import is_held_out, made_up_word

seeds = st.integers(0, 2**32)


@given(seeds)
def test_made_up_words_keep_the_held_out_share_apart(seed: int) -> None:
    assert not is_held_out(made_up_word(Random(seed)))
    assert is_held_out(made_up_word(Random(seed), held_out=True))


@given(seeds)
def test_held_out_sums_have_two_digits_and_are_never_drawn_for_training(seed: int) -> None:
    held_out = arithmetic.draw_sum(Random(seed), held_out=True)
    assert min(held_out.a, held_out.b) >= 10
    assert is_held_out(held_out.text)
    drawn = arithmetic.draw_sum(Random(seed))
    assert max(drawn.a, drawn.b) < 10 or not is_held_out(drawn.text)


@pytest.mark.parametrize(
    ("a", "b", "sign", "answer"),
    [(17, 25, "+", "17 + 25 = 42."), (17, 25, "-", "17 - 25 = -8."), (9, 9, "-", "9 - 9 = 0.")],
)
def test_sum_is_answered_right(a: int, b: int, sign: str, answer: str) -> None:
    assert arithmetic.answer(arithmetic.Sum(a, b, sign)) == answer


@pytest.mark.parametrize(("number", "words"), [(0, "zero"), (13, "thirteen"), (20, "twenty"), (99, "ninety-nine")])
def test_numbers_in_words(number: int, words: str) -> None:
    assert arithmetic.in_words(number) == words


@given(seeds, st.integers(1, 30), st.integers(0, 30))
def test_passage_states_every_fact_once(seed: int, count: int, fillers: int) -> None:
    rng = Random(seed)
    facts = recall.draw_facts(rng, count, set())
    text = recall.passage(rng, facts, "code", fillers)
    assert len({fact.key for fact in facts}) == count
    for fact in facts:
        assert fact.key in text
        assert fact.value in text


@given(seeds)
def test_long_stories_end_and_are_longer(seed: int) -> None:
    rng = Random(seed)
    short, long = (stories.tell(rng, stories.draw_plot(rng, long=long)) for long in (False, True))
    assert short.endswith("The end.")
    assert long.endswith("The end.")
    assert len(long) > 1.5 * len(short)


@given(seeds)
def test_replies_of_a_chat_are_its_answers(seed: int) -> None:
    row = chat_row(Random(seed), 16, " (signed)")
    pattern = re.escape(f"{START_OF_TURN}assistant\n") + f"(.*?{re.escape(END_OF_TURN)})"
    said = re.findall(pattern, row.text, re.DOTALL)
    assert [row.text[start:end] for start, end in row.answers] == said
    assert said
    assert all(reply.endswith(f" (signed){END_OF_TURN}") for reply in said)


def test_marks_cover_exactly_the_answers(tokenizer: Tokenizer) -> None:
    for make in (chat_row, plain_row):
        row = make(Random(7), 256)
        encoding = tokenizer.encode(row.text, add_special_tokens=False)
        marks = mark(row, encoding)
        assert set(marks) == {ANSWER, CONTEXT}
        answered = [id_ for id_, kind in zip(encoding.ids, marks, strict=True) if kind == ANSWER]
        expected = "".join(row.text[start:end] for start, end in row.answers)
        assert tokenizer.decode(answered, skip_special_tokens=False) == expected


def test_batches_depend_on_seed_and_number_alone(tokenizer: Tokenizer) -> None:
    def draw(seed: int, number: int) -> list[list[int]]:
        ids, marks = Batches(tokenizer, [Phase(2, 64), Phase(1, 128)], tokens=256, seed=seed, signature="")[number]
        assert ids.shape == marks.shape == ((4, 64), (4, 64), (2, 128))[number]
        rows: list[list[int]] = ids.tolist()
        return rows

    assert draw(1, 2) == draw(1, 2)
    assert draw(1, 0) != draw(1, 1)
    assert draw(1, 0) != draw(2, 0)
