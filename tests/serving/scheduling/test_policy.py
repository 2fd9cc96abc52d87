from __future__ import annotations

import pytest

from baton_serving.scheduling.policy import (
    Running,
    Waiting,
    dfs_weight_order,
    longest_prefix_order,
    retraction_order,
    static_key,
)


def waiting(arrival: int, priority: int = 0, begun: bool = False, max_new_tokens: int = 1) -> Waiting:
    return Waiting(priority, begun, arrival, max_new_tokens)


def arrivals(policy: str, requests: list[Waiting], seed: int = 0) -> list[int]:
    return [request.arrival for request in sorted(requests, key=static_key(policy, seed))]


@pytest.mark.parametrize("policy", ["fcfs", "lof", "random", "lpm", "dfs-weight"])
def test_every_policy_orders_by_class_first(policy: str) -> None:
    requests = [waiting(1), waiting(2, begun=True), waiting(3, priority=1), waiting(4, priority=1, begun=True)]
    assert arrivals(policy, requests) == [4, 3, 2, 1]


def test_fcfs_is_by_arrival() -> None:
    assert arrivals("fcfs", [waiting(2), waiting(1), waiting(3)]) == [1, 2, 3]


def test_lof_is_longest_output_first() -> None:
    requests = [waiting(1, max_new_tokens=5), waiting(2, max_new_tokens=9), waiting(3, max_new_tokens=9)]
    assert arrivals("lof", requests) == [2, 3, 1]


def test_random_is_shuffled_and_reproducible() -> None:
    requests = [waiting(i) for i in range(50)]
    assert arrivals("random", requests) == arrivals("random", requests)
    assert arrivals("random", requests) != list(range(50))
    assert arrivals("random", requests, seed=0) != arrivals("random", requests, seed=1)


def test_lpm_is_longest_hit_first() -> None:
    requests = [waiting(1), waiting(2), waiting(3), waiting(4, priority=1)]
    assert longest_prefix_order(requests, [0, 7, 7, 0]) == [3, 1, 2, 0]


def test_dfs_weight_keeps_subtrees_together_and_the_heavy_one_first() -> None:
    #      1        4
    #     / \
    #    2   3
    requests = [waiting(i) for i in range(6)]
    paths = [[4], [1, 3], [1, 2], [1, 3], [1], []]
    assert dfs_weight_order(requests, paths) == [1, 3, 2, 4, 0, 5]


def test_who_gives_way_first() -> None:
    running = [
        Running(priority=1, output_tokens=0, prompt_tokens=9, arrival=1),
        Running(priority=0, output_tokens=5, prompt_tokens=1, arrival=2),
        Running(priority=0, output_tokens=2, prompt_tokens=1, arrival=3),
        Running(priority=0, output_tokens=2, prompt_tokens=8, arrival=4),
        Running(priority=0, output_tokens=2, prompt_tokens=8, arrival=5),
    ]
    assert retraction_order(running) == [4, 3, 2, 1, 0]
