"""Workers on two nodes, and a change of `spec.model.revision` under load from a pod: no answer fails or is mixed."""

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
    spec = {"selector": {"app": HUB}, "ports": [{"port": 80, "targetPort": 8080}]}
    pod = small_pod(HUB, quickstart.image("worker"), ["python", f"/{HUB}/hub.py"])
    quickstart.person.apply(config, {**service, "spec": spec}, {**pod, "metadata": {**place, "labels": {"app": HUB}}})
    words = ("--namespace", quickstart.namespace, "--for=condition=Ready", "--timeout=60s")
    quickstart.person.kubectl("wait", f"pod/{HUB}", *words, within=70.0)
    yield f"http://{HUB}.{quickstart.namespace}.svc"
    quickstart.person.kubectl("delete", f"pod/{HUB}", f"service/{HUB}", "--namespace", quickstart.namespace)


@pytest.fixture(scope="module")
def spread(quickstart: Deployment, hub: str) -> dict[str, str]:
    """The service with the first revision, and the node of each role: different ones where there are two."""
    nodes = [item["metadata"]["name"] for item in quickstart.cluster.list("v1", "nodes")]
    places = {"prefill": nodes[0], "decode": nodes[min(1, len(nodes) - 1)]}
    quickstart.apply(**spec(hub, "v1", places))
    quickstart.wait_settled(240.0)
    return places


def test_the_kv_cache_travels_from_node_to_node(quickstart: Deployment, spread: dict[str, str]) -> None:
    found = {role: [pod["spec"]["nodeName"] for pod in quickstart.pods(role)] for role in spread}
    assert found == {role: [node] for role, node in spread.items()}
    assert quickstart.answers(4) == ["first"] * 4


def test_a_change_of_the_revision_fails_and_mixes_nothing(
    quickstart: Deployment, hub: str, spread: dict[str, str], figures: Figures
) -> None:
    with quickstart.load() as load, figures.timed("spec.model.revision v1 to v2, Surge"):
        quickstart.apply(**spec(hub, "v2", spread))
        quickstart.wait_settled(240.0)
        load.wait_for(4)
    figures.note(f"answers: {dict(load.count())}")
    assert load.bad() == []
    verdicts = [record["verdict"] for record in sorted(load.records(), key=lambda record: record["began"])]
    assert verdicts[0] == "first"
    assert verdicts[-1] == "second"


def spec(hub: str, revision: str, places: dict[str, str]) -> dict[str, Any]:
    """One worker of each role. Where a hub is, is nothing that a manifest has a field for."""
    variables = {"HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1"}
    fetch = {"name": "fetch-model", "env": [{"name": name, "value": value} for name, value in variables.items()]}
    overrides = {"spec": {"initContainers": [fetch]}}
    roles = {
        role: {"overrides": overrides, "placement": {"nodeSelector": {"kubernetes.io/hostname": node}}}
        for role, node in places.items()
    }
    return {"model": {"uri": "hf://baton/tiny", "revision": revision, "servedName": "baton-tiny"}, **roles}
