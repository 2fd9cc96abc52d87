from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from baton_serving.gateway.admission.fair_queue import WEIGHTS, FairQueue, Ticket


def backlog(*flows: tuple[str, str, int], each: int = 200) -> FairQueue:
    """A queue in which each (tenant, class, cost) has many requests waiting."""
    queue = FairQueue()
    for index, (tenant, kind, cost) in enumerate(flows):
        for number in range(each):
            queue.push(Ticket(index * each + number, tenant, kind, cost))
    return queue


def served(queue: FairQueue, count: int) -> Counter[tuple[str, str]]:
    tokens: Counter[tuple[str, str]] = Counter()
    for _ in range(count):
        ticket = queue.pop()
        tokens[ticket.tenant, ticket.kind] += ticket.cost
    return tokens


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=5))
def test_tenants_of_a_class_get_equal_tokens_whatever_their_requests_cost(costs: list[int]) -> None:
    queue = backlog(*[(f"t{i}", "normal", cost) for i, cost in enumerate(costs)])
    while all(any(ticket.tenant == f"t{i}" for ticket in queue) for i in range(len(costs))):
        if len(queue) < 150 * len(costs):
            break
        queue.pop()
    tokens = Counter({f"t{i}": 0 for i in range(len(costs))})
    left = Counter(ticket.tenant for ticket in queue)
    for i, cost in enumerate(costs):
        tokens[f"t{i}"] = (200 - left[f"t{i}"]) * cost
    running = [tokens[name] for name in tokens if left[name]]
    assert not running or max(running) - min(running) <= 2 * max(costs)


def test_classes_are_served_by_weight_and_none_starves() -> None:
    queue = backlog(("a", "low", 10), ("a", "normal", 10), ("a", "high", 10), each=2000)
    tokens = served(queue, 730)
    assert tokens["a", "low"] > 0
    assert abs(tokens["a", "high"] / tokens["a", "normal"] - WEIGHTS["high"] / WEIGHTS["normal"]) < 1
    assert abs(tokens["a", "normal"] / tokens["a", "low"] - WEIGHTS["normal"] / WEIGHTS["low"]) < 1


def test_requests_of_one_tenant_go_in_order() -> None:
    queue = backlog(("a", "normal", 5), each=20)
    assert [queue.pop().number for _ in range(20)] == list(range(20))


def test_who_was_idle_gets_no_credit_and_who_just_took_much_gets_no_gift() -> None:
    queue = backlog(("busy", "normal", 10))
    served(queue, 100)
    for number in range(1000, 1100):
        queue.push(Ticket(number, "late", "normal", 10))
    tokens = served(queue, 100)
    assert abs(tokens["late", "normal"] - tokens["busy", "normal"]) <= 20
    queue = backlog(("small", "normal", 10))
    queue.push(Ticket(9000, "greedy", "normal", 500))
    while 9000 in queue:
        queue.pop()
    queue.push(Ticket(9001, "greedy", "normal", 500))  # back at once: the others first get as much
    before = 0
    while 9001 in queue:
        before += queue.pop().number < 9000
    assert before >= 40


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"), st.sampled_from(sorted(WEIGHTS)), st.integers(1, 99))))
def test_whatever_goes_in_comes_out_once(steps: list[tuple[bool, str, str, int]]) -> None:
    queue = FairQueue()
    inside: set[int] = set()
    for number, (push, tenant, kind, cost) in enumerate(steps):
        if push or not inside:
            queue.push(Ticket(number, tenant, kind, cost))
            inside.add(number)
        elif cost % 3 == 0:
            queue.remove(min(inside))
            inside.remove(min(inside))
        else:
            inside.remove(queue.pop().number)
        assert {ticket.number for ticket in queue} == inside
    while queue:
        inside.remove(queue.pop().number)
    assert not inside
