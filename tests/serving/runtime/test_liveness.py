"""Alive is who ticks, or said that it would not."""

from __future__ import annotations

from baton_serving.runtime.liveness import WINDOW, Liveness
from baton_serving.runtime.messages import WorkerState


class Clock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def state(tick: int, busy_until: float = 0.0) -> WorkerState:
    return WorkerState(tick=tick, stats={}, busy_until=busy_until)


def test_nobody_is_alive_before_the_first_tick() -> None:
    assert not Liveness(Clock()).alive


def test_a_tick_that_moves_is_life_and_one_that_stands_is_not() -> None:
    clock = Clock()
    liveness = Liveness(clock)
    liveness.observe(state(1))
    clock.now += WINDOW
    assert liveness.alive
    liveness.observe(state(1))
    clock.now += 1
    assert not liveness.alive
    liveness.observe(state(2))
    assert liveness.alive


def test_a_declared_long_operation_is_life_until_its_end() -> None:
    clock = Clock()
    liveness = Liveness(clock)
    liveness.observe(state(1, busy_until=clock.now + 10 * WINDOW))
    assert liveness.busy_seconds == 10 * WINDOW
    clock.now += 10 * WINDOW
    assert liveness.alive
    clock.now += 1
    assert not liveness.alive
    assert liveness.busy_seconds == 0.0
