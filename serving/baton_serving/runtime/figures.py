"""The scheduler's figures as `/metrics`, `/get_load` and the bootstrap server see them."""

from __future__ import annotations

import time
from collections.abc import Callable

from baton_serving.scheduling.events import TokenOutput
from baton_serving.scheduling.scheduler import Scheduler
from baton_serving.scheduling.step import StepPlan

_SMOOTHING = 0.8  # weight of the past in the token rate and the hit ratio


class Figures:
    """Adds to the scheduler's own counts what only the loop knows: rates, steps and the tick."""

    def __init__(self, scheduler: Scheduler, clock: Callable[[], float] = time.monotonic) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._steps = 0
        self._generated = 0
        self._rate = 0.0
        self._hit_rate = 0.0
        self._last = (clock(), 0)
        self._booked_at = clock()
        self._prompt_tokens = 0
        self._prompt_seconds = 0.0
        self._answer_tokens = 0
        self._answer_seconds = 0.0

    def stepped(self, plan: StepPlan, launched_at: float) -> None:
        """A step was booked that was launched at `launched_at` of the clock; it began when the one before it ended."""
        now = self._clock()
        seconds = now - max(launched_at, self._booked_at)
        self._booked_at = now
        self._steps += 1
        decoding = plan.rows - sum(plan.extend)
        self._generated += sum(plan.sample)
        self._answer_tokens += decoding
        self._answer_seconds += seconds * decoding
        if decoding < plan.rows:
            self._prompt_tokens += sum(plan.lengths) - decoding
            self._prompt_seconds += seconds

    def put_out(self, outputs: list[TokenOutput]) -> None:
        """Outputs went out: a request's end tells how much of its prompt was cached."""
        for output in outputs:
            if output.finish is not None and output.prompt_tokens:
                hit = output.cached_tokens / output.prompt_tokens
                self._hit_rate = _SMOOTHING * self._hit_rate + (1 - _SMOOTHING) * hit

    def report(self, tick: int) -> dict[str, float]:
        """All figures now. Rates are since the last report, smoothed."""
        now = self._clock()
        at, generated = self._last
        if now > at:
            rate = (self._generated - generated) / (now - at)
            self._rate = _SMOOTHING * self._rate + (1 - _SMOOTHING) * rate
            self._last = (now, self._generated)
        stats = self._scheduler.stats()
        stats["token_usage"] = stats["pages_in_use"] / max(1, stats["pages_total"])
        stats["cache_hit_rate"] = self._hit_rate
        stats["gen_throughput"] = self._rate
        stats["steps_total"] = self._steps
        stats["generated_tokens_total"] = self._generated
        stats["answer_tokens_total"] = self._answer_tokens
        stats["answer_seconds_total"] = self._answer_seconds
        stats["computed_tokens_total"] = self._prompt_tokens
        stats["prompt_seconds_total"] = self._prompt_seconds
        stats["tick"] = tick
        return stats
