"""A change of `spec.model.revision` under load from a pod: every answer is whole, and by one of the two models."""

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


def test_a_change_of_the_revision_fails_and_mixes_nothing(quickstart: Deployment, hub: str, figures: Figures) -> None:
    quickstart.apply(**spec(hub, "v1"))
    quickstart.wait_settled(240.0)
    with quickstart.load() as load, figures.timed("spec.model.revision v1 to v2, Surge"):
        quickstart.apply(**spec(hub, "v2"))
        quickstart.wait_settled(240.0)
        load.wait_for(4)
    figures.note(f"answers: {dict(load.count())}")
    assert load.bad() == []
    verdicts = [record["verdict"] for record in sorted(load.records(), key=lambda record: record["began"])]
    assert verdicts[0] == "first"
    assert verdicts[-1] == "second"


def spec(hub: str, revision: str) -> dict[str, Any]:
    """One worker of each role. Where a hub is, is nothing that a manifest has a field for."""
    fetch = {
        "name": "fetch-model",
        "env": [{"name": "HF_ENDPOINT", "value": hub}, {"name": "HF_HUB_DISABLE_XET", "value": "1"}],
    }
    role = {"overrides": {"spec": {"initContainers": [fetch]}}}
    model = {"uri": "hf://baton/tiny", "revision": revision, "servedName": "baton-tiny"}
    return {"model": model, "prefill": role, "decode": role}
