from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton_serving.gateway.policies import POLICIES, power_of_two, round_robin
from baton_serving.gateway.snapshot import NoMemory, Policy, RequestFacts, Snapshot


@dataclass(frozen=True)
class Worker:
    id: str
    running: int = 0
    queued_tokens: int = 0
    incarnation: str = "1"
    weight_digest: str = "w"
    free_pages: int = 10
    total_pages: int = 10
    page_size: int = 16


workers = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8).map(
    lambda loads: [Worker(str(name), *load) for name, load in enumerate(loads)]
)


def chosen(policy: Policy, candidates: list[Worker], number: int) -> Worker:
    facts = RequestFacts(number=number, model="m", prompt=b"", prompt_tokens=0)
    return candidates[policy(Snapshot(candidates, NoMemory()), facts).index]


@pytest.mark.parametrize("name", POLICIES)
@given(candidates=workers, number=st.integers(0, 2**64))
def test_a_policy_is_a_function_of_its_arguments(name: str, candidates: list[Worker], number: int) -> None:
    first = chosen(POLICIES[name], candidates, number)
    assert chosen(POLICIES[name], list(candidates), number) == first


def test_round_robin_takes_turns() -> None:
    three = [Worker(str(name)) for name in range(3)]
    assert [chosen(round_robin, three, number).id for number in range(7)] == ["0", "1", "2", "0", "1", "2", "0"]


@given(candidates=workers)
def test_power_of_two_never_takes_the_single_most_loaded(candidates: list[Worker]) -> None:
    by_load = sorted(candidates, key=lambda worker: (worker.running, worker.queued_tokens))
    if len(by_load) < 2 or (by_load[-1].running, by_load[-1].queued_tokens) == (
        by_load[-2].running,
        by_load[-2].queued_tokens,
    ):
        return
    assert all(chosen(power_of_two, candidates, number) != by_load[-1] for number in range(200))


def test_power_of_two_spreads_evenly_over_level_workers() -> None:
    five = [Worker(str(name)) for name in range(5)]
    taken = Counter(chosen(power_of_two, five, number).id for number in range(10_000))
    assert all(1_800 < taken[str(name)] < 2_200 for name in range(5))


def test_power_of_two_looks_at_waiting_tokens_when_as_many_run() -> None:
    two = [Worker("0", running=2, queued_tokens=500), Worker("1", running=2, queued_tokens=10)]
    assert {chosen(power_of_two, two, number).id for number in range(50)} == {"1"}
