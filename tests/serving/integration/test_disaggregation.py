"""Prefill and decode on separate processes give the same answers as one undivided worker."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlsplit

import httpx
import pytest
from support.baton_processes import BATON_TINY, BatonProcess, BatonProcesses
from support.disaggregation import (
    Fleet,
    Shape,
    ask_divided,
    ask_whole,
    difference,
    mixed_cases,
    settled,
    start_fleet,
    until,
)

BACKENDS = ("mooncake", "nixl")


async def compare(fleet: Fleet, whole: BatonProcess | None, count: int, seed: int) -> None:
    """Every case through the fleet and through an undivided worker."""
    assert whole is not None
    before = [worker.metrics() for worker in fleet.decodes]
    cases = mixed_cases(count, seed)
    wanted = await ask_whole(whole, cases)
    found = await ask_divided(fleet, cases)
    differences = [difference(*triple) for triple in zip(cases, wanted, found, strict=True)]
    assert [complaint for complaint in differences if complaint] == []
    await settled(*fleet.workers)
    after = [worker.metrics() for worker in fleet.decodes]
    gained = {
        name: sum(m[f"baton_{name}_total"] for m in after) - sum(m[f"baton_{name}_total"] for m in before)
        for name in ("handoffs_arrived", "cached_tokens", "handoff_mismatched_pages")
    }
    assert gained["handoffs_arrived"] == sum(len(answer.choices) for answer in wanted)
    assert gained["cached_tokens"] > 0
    assert gained["handoff_mismatched_pages"] == 0
    await until(lambda: measured(fleet), "the rates of links")


def measured(fleet: Fleet) -> bool:
    """Whether the bootstrap server knows for each decode worker how fast pages came from prefill workers."""
    rows = httpx.get(f"{fleet.bootstrap.facts['http']}/workers", trust_env=False).json()["workers"]
    senders = {row["id"] for row in rows if row["role"] == "prefill"}
    links = {urlsplit(row["url"]).port: row["links"] for row in rows}
    found = [links.get(urlsplit(worker.url).port, {}) for worker in fleet.decodes]
    return all(each and each.keys() <= senders and min(each.values()) > 0 for each in found)


async def test_a_pair_over_mooncake_answers_like_one_worker(fleet: Fleet) -> None:
    await compare(fleet, fleet.whole, count=40, seed=3)


async def test_a_pair_over_nixl_answers_like_one_worker(fleet: Fleet, processes: BatonProcesses) -> None:
    """Its workers listen on all addresses, and announce one that can be dialled."""
    pair = start_fleet(processes, BATON_TINY, Shape("nixl", host="0.0.0.0"), whole="")
    assert [worker.url.rpartition(":")[0] for worker in pair.workers] == ["http://127.0.0.1"] * 2
    await compare(pair, fleet.whole, count=12, seed=4)


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
    """One of them alone, some four minutes on two busy cores:

    pytest -m deep tests/serving/integration/test_disaggregation.py -k 2P3D-nixl
    """
    fleet = start_fleet(processes, BATON_TINY, replace(shape, backend=backend))
    await compare(fleet, fleet.whole, count=300, seed=7)
