from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton_serving.gateway.policies import POLICIES, power_of_two, round_robin


@dataclass(frozen=True)
class Worker:
    name: int
    running: int = 0
    queued_tokens: int = 0


workers = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8).map(
    lambda loads: [Worker(name, *load) for name, load in enumerate(loads)]
)


@pytest.mark.parametrize("name", POLICIES)
@given(candidates=workers, ticket=st.integers(0, 2**64))
def test_a_policy_is_a_function_of_its_arguments(name: str, candidates: list[Worker], ticket: int) -> None:
    chosen = POLICIES[name](candidates, ticket)
    assert chosen in candidates
    assert POLICIES[name](list(candidates), ticket) == chosen


def test_round_robin_takes_turns() -> None:
    three = [Worker(name) for name in range(3)]
    assert [round_robin(three, ticket).name for ticket in range(7)] == [0, 1, 2, 0, 1, 2, 0]


@given(candidates=workers)
def test_power_of_two_never_takes_the_single_most_loaded(candidates: list[Worker]) -> None:
    by_load = sorted(candidates, key=lambda worker: (worker.running, worker.queued_tokens))
    if len(by_load) < 2 or (by_load[-1].running, by_load[-1].queued_tokens) == (
        by_load[-2].running,
        by_load[-2].queued_tokens,
    ):
        return
    assert all(power_of_two(candidates, ticket) != by_load[-1] for ticket in range(200))


def test_power_of_two_spreads_evenly_over_level_workers() -> None:
    five = [Worker(name) for name in range(5)]
    taken = Counter(power_of_two(five, ticket).name for ticket in range(10_000))
    assert all(1_800 < taken[name] < 2_200 for name in range(5))


def test_power_of_two_looks_at_waiting_tokens_when_as_many_run() -> None:
    two = [Worker(0, running=2, queued_tokens=500), Worker(1, running=2, queued_tokens=10)]
    assert {power_of_two(two, ticket).name for ticket in range(50)} == {1}
