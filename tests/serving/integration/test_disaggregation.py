"""Prefill and decode on separate processes give the same answers as one undivided worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.baton_processes import BATON_TINY, BatonProcesses
from support.disaggregation import (
    Fleet,
    Shape,
    ask_divided,
    ask_whole,
    difference,
    mixed_cases,
    settled,
    start_fleet,
)

BACKENDS = ("mooncake", "nixl")


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[BatonProcesses]:
    with BatonProcesses(tmp_path) as started:
        yield started


async def compare(fleet: Fleet, count: int, seed: int) -> None:
    """Every case through the fleet and through its undivided worker."""
    assert fleet.whole is not None
    cases = mixed_cases(count, seed)
    wanted = await ask_whole(fleet.whole, cases)
    found = await ask_divided(fleet, cases)
    differences = [difference(*triple) for triple in zip(cases, wanted, found, strict=True)]
    assert [complaint for complaint in differences if complaint] == []
    choices = sum(len(answer.choices) for answer in wanted)
    await settled(*fleet.workers)
    figures = [worker.metrics() for worker in fleet.decodes]
    assert sum(figure["baton_handoffs_arrived_total"] for figure in figures) == choices
    assert sum(figure["baton_cached_tokens_total"] for figure in figures) > 0
    assert sum(figure["baton_handoff_mismatched_pages_total"] for figure in figures) == 0


@pytest.mark.parametrize(("backend", "count", "verify"), [("mooncake", 40, True), ("nixl", 12, False)])
async def test_a_pair_answers_like_one_worker(
    processes: BatonProcesses, backend: str, count: int, verify: bool
) -> None:
    fleet = start_fleet(processes, BATON_TINY, Shape(backend, verify=verify))
    await compare(fleet, count, seed=3)


@pytest.mark.deep
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(Shape(), id="1P1D"),
        pytest.param(Shape(prefills=2, decodes=3), id="2P3D"),
        pytest.param(Shape(prefill_tp=2, verify=True), id="TP2-TP1"),
        pytest.param(Shape(decode_tp=2, verify=True), id="TP1-TP2"),
    ],
)
async def test_a_fleet_answers_like_one_worker(processes: BatonProcesses, shape: Shape, backend: str) -> None:
    fleet = start_fleet(processes, BATON_TINY, Shape(**{**vars(shape), "backend": backend}))
    await compare(fleet, 300, seed=7)
