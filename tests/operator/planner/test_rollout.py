"""Which revisions run how many workers, step by step."""

from __future__ import annotations

import pytest

from baton_operator.planner.observed import Group
from baton_operator.planner.revision import RoleRevision
from baton_operator.planner.rollout import assign, ready_pairs, serving_versions

NEW = (RoleRevision("prefill", "p2", "v2", False), RoleRevision("decode", "d2", "v2", False))
WANTED = {"prefill": 2, "decode": 1}


def group(role: str, revision: str, version: str, wanted: int, ready: int, **more: object) -> Group:
    fields = {"present": wanted, "proven": ready > 0, "whole": False, "order": int(version[1:]), **more}
    return Group(role=role, revision=revision, version=version, wanted=wanted, ready=ready, **fields)  # type: ignore[arg-type]


OLD = (group("prefill", "p1", "v1", 2, 2), group("decode", "d1", "v1", 1, 1))
KEPT = {("prefill", "p1"): 2, ("decode", "d1"): 1}
GONE = {("prefill", "p1"): 0, ("decode", "d1"): 0}


@pytest.mark.parametrize(
    ("groups", "old"),
    [
        ((), {}),
        (OLD, KEPT),
        ((*OLD, group("prefill", "p2", "v2", 2, 2)), KEPT),
        ((*OLD, group("prefill", "p2", "v2", 2, 2), group("decode", "d2", "v2", 1, 0)), KEPT),
        ((*OLD, group("prefill", "p2", "v2", 2, 2), group("decode", "d2", "v2", 1, 1)), GONE),
        ((*OLD, group("prefill", "p2", "v2", 2, 2), group("decode", "d2", "v2", 1, 1, settled=False)), KEPT),
    ],
    ids=["nothing", "new absent", "prefill only", "decode not ready", "all ready", "counts out of date"],
)
def test_old_workers_go_only_when_every_new_one_is_ready(
    groups: tuple[Group, ...], old: dict[tuple[str, str], int]
) -> None:
    assert assign(NEW, WANTED, groups) == {("prefill", "p2"): 2, ("decode", "d2"): 1, **old}


def test_an_old_workload_is_deleted_when_its_last_pod_is_gone() -> None:
    new = (group("prefill", "p2", "v2", 2, 2), group("decode", "d2", "v2", 1, 1))
    leaving = (group("prefill", "p1", "v1", 0, 0, present=1), group("decode", "d1", "v1", 0, 0))
    assert set(assign(NEW, WANTED, (*leaving, *new))) == {("prefill", "p2"), ("decode", "d2"), ("prefill", "p1")}


def test_what_was_never_ready_gives_its_devices_back_at_once() -> None:
    broken = (group("prefill", "p1", "v1", 2, 0), group("decode", "d1", "v1", 1, 0))
    assert assign(NEW, WANTED, broken) == {("prefill", "p2"): 2, ("decode", "d2"): 1, **GONE}


def test_what_was_ready_once_is_kept_while_it_is_away() -> None:
    away = (group("prefill", "p1", "v1", 2, 0, proven=True), group("decode", "d1", "v1", 1, 1))
    assert assign(NEW, WANTED, away) == {("prefill", "p2"): 2, ("decode", "d2"): 1, **KEPT}


def test_of_several_old_versions_the_one_that_serves_best_is_kept() -> None:
    half = (group("prefill", "p0", "v0", 2, 1), group("decode", "d0", "v0", 1, 1))
    lone = (group("prefill", "p3", "v3", 4, 4),)
    replicas = assign(NEW, WANTED, (*half, *lone, *OLD[:1], group("decode", "d1", "v1", 2, 2)))
    assert {
        key: count for key, count in replicas.items() if count and key not in {("prefill", "p2"), ("decode", "d2")}
    } == {
        ("prefill", "p1"): 2,
        ("decode", "d1"): 2,
    }


def test_a_role_keeps_its_earlier_revision_of_the_same_version() -> None:
    groups = (group("prefill", "p2", "v2", 2, 2), group("decode", "d1", "v2", 1, 1), group("decode", "d2", "v2", 1, 0))
    assert assign(NEW, WANTED, groups)["decode", "d1"] == 1


def test_versions_do_not_pair_with_each_other() -> None:
    assert serving_versions([group("prefill", "p1", "v1", 1, 1), group("decode", "d2", "v2", 1, 1)]) == set()
    assert serving_versions(OLD) == {"v1"}
    assert ready_pairs([group("decode", "d", "v3", 2, 2, whole=True)]) == {"v3": 2}
