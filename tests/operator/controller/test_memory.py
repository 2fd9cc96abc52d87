"""What is remembered of applied objects: an apply is left out only when it would change nothing."""

from __future__ import annotations

from typing import Any

import pytest

from baton_operator.controller.memory import Applied

WANTED = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {"replicas": 1}}
LIVE: dict[str, Any] = {
    **WANTED,
    "metadata": {"name": "a", "uid": "u", "resourceVersion": "1", "generation": 1, "annotations": {}},
    "spec": {"replicas": 1, "paused": False},
}


def with_metadata(**fields: Any) -> dict[str, Any]:
    return {**LIVE, "metadata": {**LIVE["metadata"], **fields}}


@pytest.fixture
def applied() -> Applied:
    memory = Applied()
    memory.remember("s", WANTED, LIVE)
    return memory


@pytest.mark.parametrize(
    "live",
    [
        LIVE,
        {**LIVE, "status": {"replicas": 1}},
        with_metadata(resourceVersion="2", generation=2, managedFields=[{}]),
        with_metadata(annotations={"deployment.kubernetes.io/revision": "1"}),
    ],
    ids=["same", "status", "bookkeeping", "counter"],
)
def test_what_stands_is_not_applied_again(applied: Applied, live: dict[str, Any]) -> None:
    assert applied.stands("s", WANTED, live)


@pytest.mark.parametrize(
    "live",
    [
        None,
        {**LIVE, "spec": {"replicas": 2, "paused": False}},
        {**LIVE, "spec": {"replicas": 1, "paused": True}},
        with_metadata(uid="other"),
        with_metadata(labels={"mine": "yes"}),
        with_metadata(annotations={"mine": "yes"}),
    ],
    ids=["gone", "changed", "changed_where_we_say_nothing", "made_anew", "labelled", "annotated"],
)
def test_a_changed_object_is_applied_again(applied: Applied, live: dict[str, Any] | None) -> None:
    assert not applied.stands("s", WANTED, live)


def test_another_wish_is_applied(applied: Applied) -> None:
    assert not applied.stands("s", {**WANTED, "spec": {"replicas": 2}}, LIVE)


def test_services_do_not_share_and_can_be_forgotten(applied: Applied) -> None:
    assert not applied.stands("other", WANTED, LIVE)
    applied.forget("s")
    assert not applied.stands("s", WANTED, LIVE)
