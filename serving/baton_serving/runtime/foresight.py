"""How long a step may keep the scheduler loop, judged by the last ones.

The first step of a kind may compile kernels. After that the time per token of the step before it is a fair guess: the
chunks of a long prompt become slower only bit by bit.
"""

from __future__ import annotations

from typing import Final

from baton_serving.scheduling.step import StepPlan

FIRST_STEP: Final = 120.0  # seconds that compiling may take
LONG_STEP: Final = 1.0  # seconds from which on a step is worth declaring: peers give up after five
_MARGIN: Final = 3.0


class Foresight:
    """Expected seconds of a step, from those that steps of its kind took."""

    def __init__(self) -> None:
        self._seconds_per_token: dict[tuple[bool, bool], float] = {}

    def expected(self, plan: StepPlan) -> float:
        """The seconds that `plan` should take at most."""
        seconds = self._seconds_per_token.get(_kind(plan))
        return FIRST_STEP if seconds is None else seconds * sum(plan.lengths) * _MARGIN

    def took(self, plan: StepPlan, seconds: float) -> None:
        """`plan` took `seconds`. A slow step is forgotten over the next few."""
        kind = _kind(plan)
        before = self._seconds_per_token.get(kind, 0.0)
        self._seconds_per_token[kind] = max(seconds / sum(plan.lengths), before / 2)


def _kind(plan: StepPlan) -> tuple[bool, bool]:
    """Whether it holds rows of prefill, and rows of decode: they run different kernels."""
    extend = plan.extend
    return any(extend), not all(extend)
