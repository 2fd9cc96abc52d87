"""Workers on two nodes, and changes of `spec.model.revision` under load from a pod: no answer fails or is mixed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.nodes.conftest import Figures
from cluster.nodes.deployment import Deployment, small_pod

HUB = "hub"


@pytest.fixture(scope="module")
def hub(quickstart: Deployment) -> Iterator[str]:
    """The URL of a hub that has the demo models as revisions `v1` and `v2`."""
    script = Path(__file__).with_name("hub.py").read_text()
    place = {"name": HUB, "namespace": quickstart.namespace}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": place, "data": {"hub.py": script}}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": place}
    spec = {"selector": {"app": HUB}, "ports": [{"port": 80}]}
    pod = small_pod(HUB, quickstart.image("worker"), ["python", f"/{HUB}/hub.py"])
    quickstart.person.apply(config, {**service, "spec": spec}, {**pod, "metadata": {**place, "labels": {"app": HUB}}})
    words = ("--namespace", quickstart.namespace, "--for=condition=Ready", "--timeout=60s")
    quickstart.person.kubectl("wait", f"pod/{HUB}", *words, within=70.0)
    yield f"http://{HUB}.{quickstart.namespace}.svc"
    quickstart.person.kubectl("delete", f"pod/{HUB}", f"service/{HUB}", "--namespace", quickstart.namespace)


@pytest.fixture(scope="module")
def places(quickstart: Deployment) -> dict[str, str]:
    """The node of each role: different ones where there are two."""
    nodes = [item["metadata"]["name"] for item in quickstart.cluster.list("v1", "nodes")]
    return {"prefill": nodes[0], "decode": nodes[min(1, len(nodes) - 1)]}


@pytest.mark.parametrize("strategy", ["Surge", "InPlace"])
def test_a_change_of_the_revision_fails_and_mixes_nothing(
    quickstart: Deployment, hub: str, places: dict[str, str], figures: Figures, strategy: str
) -> None:
    quickstart.apply(**spec(hub, "v1", places, strategy))
    quickstart.wait_settled(240.0)
    assert nodes_of(quickstart, places) == {role: [node] for role, node in places.items()}
    assert quickstart.answers(4) == ["first"] * 4
    before = names(quickstart)
    with quickstart.load() as load, figures.timed(f"spec.model.revision v1 to v2, {strategy}"):
        quickstart.apply(**spec(hub, "v2", places, strategy))
        quickstart.wait_settled(240.0)
        load.wait_for(4)
    figures.note(f"{strategy}: {load.summary()}")
    assert load.bad() == []
    verdicts = [record["verdict"] for record in sorted(load.records(), key=lambda record: record["began"])]
    assert verdicts[0] == "first"
    assert verdicts[-1] == "second"
    assert (names(quickstart) == before) is (strategy == "InPlace")


def nodes_of(quickstart: Deployment, roles: dict[str, str]) -> dict[str, list[str]]:
    return {role: [pod["spec"]["nodeName"] for pod in quickstart.staying(role)] for role in roles}


def names(quickstart: Deployment) -> set[str]:
    return {pod["metadata"]["name"] for role in ("prefill", "decode") for pod in quickstart.staying(role)}


def spec(hub: str, revision: str, places: dict[str, str], strategy: str) -> dict[str, Any]:
    """One worker of each role. Where a hub is, is nothing that a manifest has a field for."""
    env = [{"name": "HF_ENDPOINT", "value": hub}, {"name": "HF_HUB_DISABLE_XET", "value": "1"}]
    overrides = {"spec": {"initContainers": [{"name": "fetch-model", "env": env}]}}
    roles = {
        role: {"env": env, "overrides": overrides, "placement": {"nodeSelector": {"kubernetes.io/hostname": node}}}
        for role, node in places.items()
    }
    model = {"uri": "hf://baton/tiny", "revision": revision, "servedName": "baton-tiny"}
    return {"model": model, "rollout": {"strategy": strategy}, **roles}
