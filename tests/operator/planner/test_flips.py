"""Workers that take the other role: who, when, and what stands in the cluster then."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rolling_cluster import RollingCluster

from baton_operator.planner.fleet import Member
from baton_operator.planner.flips import flips_of, with_flips
from baton_operator.rollout import DECODE, PREFILL, Worker

ROLES = (PREFILL, DECODE)


def manifest(prefill: int, decode: int, flip: str = "true") -> str:
    roles = f"prefill: {{replicas: {prefill}}}, decode: {{replicas: {decode}}}"
    return f"{{model: {{uri: 'hf://a/b'}}, scaling: {{roleFlip: {flip}}}, {roles}}}"


def member(name: str, home: str, role: str, *, ready: bool = True, order: int = 0) -> Member:
    return Member(Worker(name, role, "v", ready, order=order), (home, "r"), "v")


members = st.lists(st.tuples(st.sampled_from(ROLES), st.sampled_from(ROLES), st.booleans()), max_size=9).map(
    lambda drawn: [member(f"w{n}", home, role, ready=up, order=n) for n, (home, role, up) in enumerate(drawn)]
)


@given(members, st.integers(1, 6), st.integers(1, 6))
def test_roles_come_nearer_to_what_is_wanted_and_then_stay(before: list[Member], prefill: int, decode: int) -> None:
    desired = {PREFILL: prefill, DECODE: decode}
    after = with_flips(before, desired)
    assert [one.worker.id for one in after] == [one.worker.id for one in before]

    def missing(found: list[Member]) -> int:
        counts = Counter(one.worker.role for one in found)
        return sum(max(0, desired[role] - counts[role]) for role in ROLES)

    assert missing(after) <= missing(before)
    for role in ROLES:
        was, now = ([one for one in found if one.worker.role == role and one.worker.ready] for found in (before, after))
        left = [one for one in was if one not in now and one.key[0] == role]
        assert not left or now  # no role gives its last ready worker away
    for one, other in zip(before, after, strict=True):
        assert one == other or not other.worker.ready
    assert with_flips(after, desired) == after


def test_who_only_comes_home_does_not_count_as_ready_there() -> None:
    there = [
        member("p0", PREFILL, DECODE),
        member("p1", PREFILL, PREFILL, order=1),
        member("d0", DECODE, PREFILL, ready=False),
    ]
    after = with_flips(there, {PREFILL: 1, DECODE: 2})
    assert [(one.worker.role, one.worker.ready) for one in after] == [
        (PREFILL, False),
        (PREFILL, True),
        (DECODE, False),
    ]
    at_home = [member(one.worker.id, one.key[0], one.worker.role, order=one.worker.order) for one in after]
    assert [one.worker.role for one in with_flips(at_home, {PREFILL: 1, DECODE: 2})] == [PREFILL, DECODE, DECODE]


def test_who_serves_elsewhere_goes_home_before_anybody_ends() -> None:
    there = [member("p0", PREFILL, PREFILL), member("d0", DECODE, DECODE), member("d1", DECODE, PREFILL)]
    assert flips_of(there) == {"d1": PREFILL}
    after = with_flips(there, {PREFILL: 1, DECODE: 1})
    assert {one.worker.id: one.worker.role for one in after} == {"p0": PREFILL, "d0": DECODE, "d1": DECODE}
    assert flips_of(after) == {}


def run(cluster: RollingCluster, rounds: int = 40) -> None:
    for _ in range(rounds):
        cluster.round()
        cluster.live()


def roles_of(cluster: RollingCluster) -> Counter[str]:
    return Counter(one.role for one in cluster.workers or ())


def pods(cluster: RollingCluster) -> set[str]:
    return {pod["metadata"]["name"] for pod in cluster.pods}


@pytest.mark.parametrize("seed", range(5))
def test_a_shift_between_roles_starts_no_worker_and_ends_none(seed: int) -> None:
    cluster = RollingCluster(manifest(2, 3), seed)
    run(cluster)
    started, told = pods(cluster), cluster.replicas()
    assert roles_of(cluster) == {PREFILL: 2, DECODE: 3}
    for prefill, decode in ((3, 2), (4, 1), (1, 4), (2, 3)):
        cluster.edit(manifest(prefill, decode))
        for _ in range(15):
            cluster.round()
            assert cluster.serving()
            cluster.live()
        assert roles_of(cluster) == {PREFILL: prefill, DECODE: decode}
        assert (pods(cluster), cluster.replicas()) == (started, told)
        status = cluster.service["status"]
        assert (status["prefill"]["ready"], status["decode"]["ready"]) == (prefill, decode)
        assert len(status.get("flips", [])) == abs(prefill - 2)
        assert cluster.condition("Ready")["status"] == "True"
    before = cluster.writes
    run(cluster, 5)
    assert cluster.writes == before


def test_scalers_count_workers_in_the_role_that_they_have() -> None:
    scaling = "autoscaling: {driver: external, maxReplicas: 9}"
    roles = f"prefill: {{replicas: 2, {scaling}}}, decode: {{replicas: 3, {scaling}}}"
    cluster = RollingCluster(f"{{model: {{uri: 'hf://a/b'}}, scaling: {{roleFlip: true}}, {roles}}}")
    run(cluster)
    scalers = cluster.of_kind("WorkerScaler")
    scalers["chat-prefill"]["spec"]["replicas"], scalers["chat-decode"]["spec"]["replicas"] = 3, 2
    run(cluster)
    assert roles_of(cluster) == {PREFILL: 3, DECODE: 2}
    found = {name: item["status"]["replicas"] for name, item in cluster.of_kind("WorkerScaler").items()}
    assert found == {"chat-prefill": 3, "chat-decode": 2}


def test_without_leave_workers_end_and_new_ones_start() -> None:
    cluster = RollingCluster(manifest(2, 3, "false"))
    run(cluster)
    started = pods(cluster)
    cluster.edit(manifest(3, 2, "false"))
    run(cluster)
    assert roles_of(cluster) == {PREFILL: 3, DECODE: 2}
    assert pods(cluster) != started
    assert not cluster.service["status"].get("flips")


def test_when_leave_is_taken_back_all_go_home() -> None:
    cluster = RollingCluster(manifest(2, 3))
    run(cluster)
    cluster.edit(manifest(3, 2))
    run(cluster)
    assert cluster.service["status"]["flips"]
    cluster.edit(manifest(3, 2, "false"))
    run(cluster)
    assert roles_of(cluster) == {PREFILL: 3, DECODE: 2}
    assert not cluster.service["status"].get("flips")


def test_nobody_moves_while_nobody_can_be_asked() -> None:
    cluster = RollingCluster(manifest(2, 3))
    run(cluster)
    cluster.edit(manifest(3, 2))
    run(cluster)
    flips, told = cluster.service["status"]["flips"], cluster.replicas()
    cluster.reachable = False
    run(cluster, 10)
    assert (cluster.service["status"]["flips"], cluster.replicas()) == (flips, told)


@pytest.mark.parametrize("seed", range(5))
def test_a_new_version_begins_with_workers_in_their_own_roles(seed: int) -> None:
    cluster = RollingCluster(manifest(2, 3), seed)
    run(cluster)
    cluster.edit(manifest(3, 2))
    run(cluster)
    cluster.edit(manifest(3, 2).replace("hf://a/b", "hf://a/c"))
    for _ in range(150):
        cluster.round()
        assert cluster.serving()
        cluster.live()
    assert cluster.rollout["phase"] == "Done"
    assert roles_of(cluster) == {PREFILL: 3, DECODE: 2}
    assert not cluster.service["status"].get("flips")


@pytest.mark.parametrize("seed", range(5))
def test_a_worker_that_starts_again_takes_its_role_again(seed: int) -> None:
    cluster = RollingCluster(manifest(2, 3), seed)
    run(cluster)
    cluster.edit(manifest(3, 2))
    run(cluster)
    (flip,) = cluster.service["status"]["flips"]
    cluster.kill(flip["name"])
    run(cluster)
    assert roles_of(cluster) == {PREFILL: 3, DECODE: 2}
    assert cluster.condition("Ready")["status"] == "True"
