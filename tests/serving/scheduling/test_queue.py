from __future__ import annotations

import random

import pytest

from baton_serving.kv.layout import KVGroup, KVLayout
from baton_serving.kv.manager import KVManager
from baton_serving.kv.radix import pack
from baton_serving.sampling.params import SamplingParams
from baton_serving.scheduling.policy import PREFIX_POLICY_LIMIT
from baton_serving.scheduling.queue import WaitingQueue
from baton_serving.scheduling.request import Request


def make_kv(cached: list[int]) -> KVManager:
    kv = KVManager(KVLayout(2, 1, 4, 4, "float32", (KVGroup((0,)),)), 50)
    held = kv.open("earlier", "", kv.match("", b"", 0))
    kv.grow(held, len(cached))
    kv.publish(held, pack(cached), len(cached), leaving=True)
    kv.release(held)
    return kv


def make(arrival: int, prompt: list[int]) -> Request:
    request = Request(f"r{arrival}", prompt, SamplingParams())
    request.arrival = arrival
    request.set_goal()
    return request


def test_stays_sorted_and_finds_what_it_removes() -> None:
    queue = WaitingQueue("fcfs", None, 0)
    requests = [make(i, [1]) for i in range(30)]
    for request in random.Random(1).sample(requests, 30):
        queue.push(request)
    assert list(queue) == requests
    queue.remove(requests[7])
    assert len(queue) == 29
    with pytest.raises(KeyError, match="r7"):
        queue.remove(requests[7])


def test_a_retracted_request_passes_those_of_its_class() -> None:
    queue = WaitingQueue("fcfs", 1, 0)
    queue.push(make(1, [1]))
    assert queue.full
    back = make(2, [1])
    back.retracted = True
    queue.push(back)
    assert [request.rid for request in queue] == ["r2", "r1"]


def test_an_answer_begun_elsewhere_passes_those_that_begin() -> None:
    queue = WaitingQueue("fcfs", None, 0)
    queue.push(make(1, [1]))
    moved = Request("moved", [1], SamplingParams(), output=[5, 6])
    moved.arrival = 2
    queue.push(moved)
    assert [request.rid for request in queue] == ["moved", "r1"]
    queue.remove(moved)


@pytest.mark.parametrize(("policy", "expected"), [("lpm", ["r3", "r2", "r1"]), ("dfs-weight", ["r2", "r3", "r1"])])
def test_policies_that_look_at_the_tree(policy: str, expected: list[str]) -> None:
    kv = make_kv([1, 2, 3, 4, 5, 6])
    queue = WaitingQueue(policy, None, 0)
    queue.push(make(1, [7, 7, 7]))
    queue.push(make(2, [1, 2, 8, 8] if policy == "lpm" else [1, 2, 3, 4, 5, 6, 7]))
    queue.push(make(3, [1, 2, 3, 4, 9]))
    assert [request.rid for request in queue.order(kv)] == expected


def test_a_long_queue_is_served_in_order_of_arrival() -> None:
    kv = make_kv([1, 2, 3, 4])
    queue = WaitingQueue("lpm", None, 0)
    for i in range(PREFIX_POLICY_LIMIT):
        queue.push(make(i, [9, 9]))
    queue.push(make(PREFIX_POLICY_LIMIT, [1, 2, 3, 4, 5]))
    assert queue.order(kv)[-1].arrival == PREFIX_POLICY_LIMIT
