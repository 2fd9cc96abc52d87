from __future__ import annotations

import pytest

from baton_serving.cli.timeline import Stage, stages, timeline_lines
from baton_serving.runtime.messages import Timings

DIVIDED = Timings(
    received=10.01,
    queued=10.02,
    scheduled=10.05,
    prefilled=10.30,
    transfer_started=10.04,
    transferred=10.31,
    first_token=10.32,
    finished=10.50,
    transfer_bytes=8_000_000,
    transfer_pages=80,
    transfer_seconds=0.02,
)


def test_a_divided_request_passes_every_stage() -> None:
    found = stages(10.0, 10.6, DIVIDED)
    assert [stage.name for stage in found] == ["tokenised", "queued", "prefilled", "moved", "first token", "done"]
    assert [round(stage.end, 3) for stage in found] == [0.02, 0.05, 0.3, 0.31, 0.32, 0.6]
    assert round(found[3].start, 3) == 0.05
    assert found[3].note == "8.0 MB, 80 pages, 0.40 GB/s"


def test_an_undivided_one_moves_nothing() -> None:
    found = stages(10.0, 10.6, Timings(queued=10.02, scheduled=10.05, prefilled=10.30, first_token=10.30))
    assert [stage.name for stage in found] == ["tokenised", "queued", "prefilled", "first token", "done"]


def test_clocks_that_disagree_make_no_stage_negative() -> None:
    found = stages(10.0, 10.1, Timings(queued=9.9, scheduled=10.05, prefilled=10.04, first_token=10.2))
    assert all(0 <= stage.start <= stage.end for stage in found)


def test_nothing_reported_is_one_stage() -> None:
    assert stages(1.0, 2.0, Timings()) == [Stage("done", 0.0, 1.0)]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 60.0])
def test_lines_fit_a_terminal(scale: float) -> None:
    found = [Stage(one.name, one.start * scale, one.end * scale, one.note) for one in stages(10.0, 10.6, DIVIDED)]
    lines = timeline_lines(found)
    assert len(lines) == 7
    assert max(map(len, lines)) <= 80
    assert lines[-1].count("━") >= 1


def test_a_bar_spans_its_share() -> None:
    [_, first, second] = timeline_lines([Stage("a", 0.0, 0.5), Stage("b", 0.5, 1.0)])
    assert first.count("━") == second.count("━") == 8
