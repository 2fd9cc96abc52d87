"""What the loop measures of its steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from baton_serving.runtime.figures import Figures
from baton_serving.scheduling.scheduler import Scheduler
from baton_serving.scheduling.step import StepPlan


class Stopwatch:
    def __init__(self) -> None:
        self.now = 10.0

    def __call__(self) -> float:
        return self.now


def plan(prompts: list[int], decoding: int) -> StepPlan:
    rows = len(prompts) + decoding
    extend = [1] * len(prompts) + [0] * decoding
    lengths = [*prompts, *[1] * decoding]
    return StepPlan(
        step=1, slots=list(range(rows)), starts=[0] * rows, lengths=lengths, extend=extend, tokens=[], sample=[1] * rows
    )


def test_prompts_and_answers_are_counted_with_the_time_they_took() -> None:
    """A step begins when it is launched or, launched ahead, when the one before it ends."""
    watch = Stopwatch()
    stats: dict[str, Any] = {"pages_in_use": 0, "pages_total": 1}
    figures = Figures(cast(Scheduler, SimpleNamespace(stats=lambda: dict(stats))), watch)
    watch.now = 12.0
    figures.stepped(plan([100, 28], 0), launched_at=11.0)
    watch.now = 12.5
    figures.stepped(plan([], 4), launched_at=11.5)
    watch.now = 14.5
    figures.stepped(plan([50], 4), launched_at=12.5)
    found = figures.report(tick=3)
    assert (found["computed_tokens_total"], found["prompt_seconds_total"]) == (178, 1.0 + 2.0)
    assert (found["answer_tokens_total"], found["answer_seconds_total"]) == (8, 4 * 0.5 + 4 * 2.0)
    assert found["generated_tokens_total"] == 2 + 4 + 5
