"""The number of workers follows what is asked of them, under load: nothing fails when one comes or goes."""

from __future__ import annotations

import pytest
from cluster.nodes.conftest import Figures
from cluster.nodes.deployment import Deployment, is_ready
from support.kube.client import eventually

MODEL = {"uri": "file://models/baton-tiny", "servedName": "baton-tiny"}
ROLES = ("prefill", "decode")


@pytest.fixture(scope="module")
def scaled_by_others(quickstart: Deployment) -> Deployment:
    """Each role has one worker or two, as somebody says through the scale subresource: here an HPA's part is ours."""
    autoscaling = {"driver": "external", "minReplicas": 1, "maxReplicas": 2}
    quickstart.apply(model=MODEL, **{role: {"autoscaling": autoscaling} for role in ROLES})
    quickstart.wait_settled(240.0)
    eventually(lambda: all(ready(quickstart, role) == 1 for role in ROLES), 120.0)
    return quickstart


@pytest.mark.parametrize("role", ROLES)
def test_a_role_grows_and_shrinks_under_load(scaled_by_others: Deployment, figures: Figures, role: str) -> None:
    with scaled_by_others.load() as load:
        with figures.timed(f"{role} from 1 worker to 2"):
            scale(scaled_by_others, role, 2)
            eventually(lambda: ready(scaled_by_others, role) == 2, 120.0, pause=0.2)
        load.wait_for(8)
        with figures.timed(f"{role} from 2 workers to 1, drained and gone"):
            scale(scaled_by_others, role, 1)
            eventually(lambda: len(scaled_by_others.pods(role)) == 1, 120.0, pause=0.2)
        load.wait_for(4)
    figures.note(f"{role} up and down: {load.summary()}")
    assert load.bad() == []


def test_the_operator_adds_workers_takes_all_away_and_brings_them_back(
    quickstart: Deployment, figures: Figures
) -> None:
    """With an aim that no worker can keep, so that any load is too much for one, and as many of either role."""
    roles = {role: {"autoscaling": {"minReplicas": 0, "maxReplicas": 2}} for role in ROLES}
    aims = {"tpotMilliseconds": 1, "minPrefillPercent": 100, "idleSeconds": 30}
    quickstart.apply(model=MODEL, gateway={"workerWaitSeconds": 180}, scaling=aims, **roles)
    quickstart.wait_settled(240.0)
    with quickstart.load(streams=6) as load:
        with figures.timed("both roles from 1 worker to 2, by load"):
            eventually(lambda: all(ready(quickstart, role) == 2 for role in ROLES), 240.0, pause=0.2)
        load.wait_for(4)
    figures.note(f"up by load: {load.summary()}")
    assert load.bad() == []
    with figures.timed("to no worker at all, after 30 s without a request"):
        eventually(lambda: not any(quickstart.pods(role) for role in ROLES), 240.0, pause=0.2)
    assert quickstart.condition("Ready")["reason"] == "ScaledToZero"
    with figures.timed("from no worker to the first answers"):
        assert quickstart.answers(2, within=200.0) == ["first"] * 2


def scale(service: Deployment, role: str, count: int) -> None:
    name = f"workerscaler/{service.name}-{role}"
    service.person.kubectl("scale", name, "--namespace", service.namespace, f"--replicas={count}")


def ready(service: Deployment, role: str) -> int:
    return sum(map(is_ready, service.staying(role)))
