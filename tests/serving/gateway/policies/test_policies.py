"""Every policy: a pure choice among any workers, and what each promises."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton_operator.api.endpoint import Policy as ManifestPolicy
from baton_serving.gateway.policies import ASK_MEMORY, POLICIES
from baton_serving.gateway.policies.memory import Memory
from baton_serving.gateway.policies.scored import SMALL_FLEET
from baton_serving.gateway.snapshot import NoMemory, RequestFacts, Snapshot


@dataclass(frozen=True)
class Worker:
    id: str
    running: int = 0
    queued_tokens: int = 0
    used_tokens: int = 0
    weight_digest: str = "w1"
    incarnation: str = "1"


def fleet(count: int) -> tuple[Worker, ...]:
    return tuple(Worker(f"w{n:03d}") for n in range(count))


def facts(number: int = 0, prompt: bytes = b"", session: str = "", tokens: int = 0) -> RequestFacts:
    size = tokens or len(prompt) // 4
    return RequestFacts(number=number, model="m", prompt=prompt, prompt_tokens=size, session=session)


WORKERS = st.lists(
    st.builds(
        Worker,
        id=st.sampled_from([f"w{n}" for n in range(40)]),
        running=st.integers(0, 50),
        queued_tokens=st.integers(0, 10_000),
        used_tokens=st.integers(0, 1600),
        weight_digest=st.sampled_from(["w1", "w2"]),
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda worker: worker.id,
)


@pytest.mark.parametrize("name", list(POLICIES))
@given(workers=WORKERS, number=st.integers(0, 1 << 60), prompt=st.binary(max_size=400), session=st.text(max_size=5))
def test_every_policy_chooses_some_worker_and_the_same_one_again(
    name: str, workers: list[Worker], number: int, prompt: bytes, session: str
) -> None:
    memory = Memory()
    memory.routed(facts(prompt=prompt), (workers[0],), 0.0)
    snapshot = Snapshot(tuple(workers), memory, 0.0)
    asked = facts(number, prompt, session)
    choice = POLICIES[name](snapshot, asked)
    assert 0 <= choice.index < len(workers)
    assert POLICIES[name](snapshot, asked) == choice
    if choice.scores:
        assert len(choice.scores) == len(choice.considered)
        assert choice.scores[list(choice.considered).index(choice.index)] == min(choice.scores)


def test_the_manifest_offers_the_policies_that_there_are() -> None:
    assert set(get_args(ManifestPolicy)) == set(POLICIES)
    assert set(POLICIES) >= ASK_MEMORY


@pytest.mark.parametrize("name", ["round_robin", "random", "power_of_two", "least_load", "cache_aware", "least_ttft"])
@pytest.mark.parametrize("count", [5, SMALL_FLEET + 20])
def test_equal_workers_get_equal_shares(name: str, count: int) -> None:
    snapshot = Snapshot(fleet(count), NoMemory(), 0.0)
    shares = Counter(POLICIES[name](snapshot, facts(number)).index for number in range(200 * count))
    assert len(shares) == count
    assert max(shares.values()) < 1.5 * min(shares.values())


@pytest.mark.parametrize("name", ["power_of_two", "least_load", "cache_aware", "least_ttft"])
def test_of_two_workers_the_less_loaded_gets_the_request(name: str) -> None:
    idle, busy = fleet(2)
    busy = replace(busy, running=9, queued_tokens=4000, used_tokens=1440)
    for number in range(20):
        assert POLICIES[name](Snapshot((idle, busy), NoMemory(), 0.0), facts(number)).index == 0
        assert POLICIES[name](Snapshot((busy, idle), NoMemory(), 0.0), facts(number)).index == 1


def test_cache_aware_follows_the_prompt_until_its_worker_has_too_much_to_do() -> None:
    memory, workers = Memory(), fleet(4)
    prompt = bytes(range(256)) * 40
    memory.routed(facts(prompt=prompt), (workers[2],), 0.0)
    longer = prompt + b"and a new question" * 20
    for number in range(20):
        choice = POLICIES["cache_aware"](Snapshot(workers, memory, 0.0), facts(number, longer))
        assert choice.index == 2
        assert choice.cached == pytest.approx(len(prompt) / 4, rel=0.15)
    buried = (*workers[:2], replace(workers[2], queued_tokens=100_000), workers[3])
    assert POLICIES["cache_aware"](Snapshot(buried, memory, 0.0), facts(0, longer)).index != 2


def test_a_holder_in_a_large_fleet_is_found_among_those_that_are_scored() -> None:
    memory, workers = Memory(), fleet(300)
    prompt = bytes(range(256)) * 40
    memory.routed(facts(prompt=prompt), (workers[123],), 0.0)
    for number in range(50):
        choice = POLICIES["cache_aware"](Snapshot(workers, memory, 0.0), facts(number, prompt))
        assert choice.index == 123
        assert len(choice.considered) < 32


def test_cached_tokens_of_other_weights_count_for_nothing() -> None:
    memory = Memory()
    prompt = b"x" * 4000
    old, new = Worker("a", weight_digest="w1"), Worker("b", weight_digest="w2", queued_tokens=1)
    memory.routed(facts(prompt=prompt), (old,), 0.0)
    swapped = replace(old, weight_digest="w2", queued_tokens=2, incarnation="1")
    choice = POLICIES["cache_aware"](Snapshot((swapped, new), memory, 0.0), facts(prompt=prompt))
    assert (choice.index, choice.cached) == (1, 0)


def test_least_ttft_learns_which_worker_is_fast() -> None:
    memory, workers = Memory(), fleet(2)
    for _ in range(20):
        memory.computed(workers[0], 1000, 1.0)
        memory.computed(workers[1], 1000, 0.1)
    snapshot = Snapshot((workers[0], replace(workers[1], queued_tokens=3000)), memory, 0.0)
    assert POLICIES["least_ttft"](snapshot, facts(tokens=2000)).index == 1
    assert POLICIES["least_load"](snapshot, facts(tokens=2000)).index == 0


@pytest.mark.parametrize("name", ["consistent_hash", "session_affinity"])
def test_sessions_keep_their_worker_whatever_the_load_and_move_only_when_it_goes(name: str) -> None:
    workers = fleet(10)
    busy = tuple(replace(worker, running=n, queued_tokens=1000 * n) for n, worker in enumerate(workers))
    sessions = [f"session-{n}" for n in range(400)]

    def chosen(candidates: tuple[Worker, ...]) -> dict[str, str]:
        snapshot = Snapshot(candidates, NoMemory(), 0.0)
        return {s: candidates[POLICIES[name](snapshot, facts(n, session=s)).index].id for n, s in enumerate(sessions)}

    before = chosen(workers)
    assert chosen(busy) == before == chosen(tuple(reversed(workers)))
    assert max(Counter(before.values()).values()) < 80
    after = chosen(workers[:-1])
    gone = workers[-1].id
    assert all(after[s] == before[s] for s in sessions if before[s] != gone)


def test_consistent_hash_goes_by_how_the_prompt_begins_when_there_is_no_session() -> None:
    snapshot = Snapshot(fleet(10), NoMemory(), 0.0)
    policy = POLICIES["consistent_hash"]
    begun = [policy(snapshot, facts(n, b"a" * 600 + b"%d" % n)).index for n in range(20)]
    other = [policy(snapshot, facts(n, b"%03d" % n * 200)).index for n in range(50)]
    assert len(set(begun)) == 1
    assert len(set(other)) > 5
