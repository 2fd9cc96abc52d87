"""What the loop expects of its next step."""

from __future__ import annotations

from baton_serving.runtime.foresight import FIRST_STEP, LONG_STEP, Foresight
from baton_serving.scheduling.step import StepPlan


def plan(lengths: list[int], extend: list[int]) -> StepPlan:
    rows = len(lengths)
    slots = list(range(rows))
    return StepPlan(1, slots, [0] * rows, lengths, extend, [0] * sum(lengths), [1] * rows)


PROMPT, ANSWER = plan([400], [1]), plan([1, 1], [0, 0])


def test_the_first_step_of_a_kind_may_compile() -> None:
    foresight = Foresight()
    assert foresight.expected(PROMPT) == FIRST_STEP
    foresight.took(PROMPT, 0.1)
    assert foresight.expected(PROMPT) < LONG_STEP
    assert foresight.expected(ANSWER) == FIRST_STEP


def test_a_longer_step_is_expected_to_take_longer() -> None:
    foresight = Foresight()
    foresight.took(PROMPT, 4.0)
    assert foresight.expected(plan([800], [1])) > 8.0
    assert foresight.expected(plan([4], [1])) < LONG_STEP


def test_one_slow_step_is_forgotten() -> None:
    foresight = Foresight()
    foresight.took(ANSWER, 60.0)
    assert foresight.expected(ANSWER) > 60.0
    for _ in range(10):
        foresight.took(ANSWER, 0.01)
    assert foresight.expected(ANSWER) < LONG_STEP
