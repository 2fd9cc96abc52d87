import pytest

from baton_serving.bench.scheduler_overhead import StandIn, measure
from baton_serving.scheduling.step import StepPlan


def decode_plan(step: int, rows: int, extend: int = 0) -> StepPlan:
    return StepPlan(step, list(range(rows)), [5] * rows, [1] * rows, [extend] * rows, [], [1] * rows)


def test_the_stand_in_runs_one_step_after_another() -> None:
    stopped: list[bool] = []
    device = StandIn(step_seconds=0.002, rows=2, steps=2, on_enough=lambda: stopped.append(True))
    first = device.launch(decode_plan(1, 2, extend=1))
    second = device.launch(decode_plan(2, 2))
    assert second.end == first.end + 0.002
    assert second.result().tokens == [7, 7]
    assert device.idle == [0.0]
    third = device.launch(decode_plan(3, 2))
    assert third.end > second.end + 0.002
    assert len(device.idle) == 2
    assert device.idle[1] == pytest.approx(third.end - 0.002 - second.end)
    assert stopped == [True]


def test_the_real_loop_is_measured_both_ways() -> None:
    overhead = measure(batch=3, steps=20, step_seconds=0.001)
    assert (overhead.batch, overhead.host.count, overhead.overlapped.count) == (3, 20, 20)
    assert overhead.host.p50 > 0
    assert overhead.scheduler.count == 20
    assert overhead.scheduler.p50 > 0
