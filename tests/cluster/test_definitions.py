"""The CustomResourceDefinitions as the API server takes them: what it refuses, fills in, shows and scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from cluster.refusals import REFUSED
from support.kube.client import BATON, Cluster, Item
from support.kube.control_plane import ControlPlane

from baton_operator.api import InferenceService

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml"))


def item_of(spec: str, namespace: str, name: str = "chat") -> Item:
    text = spec if spec.startswith("{") else f"{{model: {{uri: 'hf://a/b'}}, {spec}}}"
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": BATON, "kind": "InferenceService", "metadata": metadata, "spec": yaml.safe_load(text)}


def create(cluster: Cluster, item: Item) -> httpx.Response:
    path = cluster.path(BATON, "inferenceservices", item["metadata"]["namespace"])
    return cluster.http.post(path, json=item, params={"fieldValidation": "Strict"})


def test_there_are_forty_refusals() -> None:
    assert len(REFUSED) >= 40


@pytest.mark.parametrize(("spec", "field", "remedy"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_work_is_refused_with_field_and_remedy(
    cluster: Cluster, spec: str, field: str, remedy: str
) -> None:
    answer = create(cluster, item_of(spec, "default"))
    assert answer.status_code in (400, 422), answer.text
    message = answer.json()["message"]
    assert f"{field}:" in message or f'"{field}"' in message, message
    assert remedy in message


@pytest.mark.parametrize("name", ["Chat", "1chat", "chat-", "c" * 51])
def test_a_name_that_leads_to_no_valid_children_is_refused(cluster: Cluster, name: str) -> None:
    answer = create(cluster, item_of("decode: {}", "default", name))
    assert answer.status_code == 422, answer.text
    assert "metadata.name" in answer.json()["message"]


def test_the_api_server_fills_in_what_the_manifest_types_would(cluster: Cluster, namespace: str) -> None:
    item = item_of("decode: {}", namespace)
    made = create(cluster, item).raise_for_status().json()
    expected = InferenceService.model_validate({**item, "metadata": item["metadata"]}, by_alias=True, by_name=False)
    read = InferenceService.model_validate({**made, "metadata": item["metadata"]}, by_alias=True, by_name=False)
    assert read == expected
    assert made["spec"]["prefill"]["replicas"] == 1
    assert made["spec"]["transfer"] == {"backend": "mooncake", "protocol": "tcp", "devices": []}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_taken(cluster: Cluster, path: Path) -> None:
    documents = [item for item in yaml.safe_load_all(path.read_text()) if item]
    services = [item for item in documents if item["kind"] == "InferenceService"]
    for item in services:
        where = cluster.path(BATON, "inferenceservices", "default")
        query = {"dryRun": "All", "fieldValidation": "Strict"}
        answer = cluster.http.post(where, json={**item, "metadata": {"name": "example"}}, params=query)
        assert answer.is_success, answer.text


def test_kubectl_shows_what_a_person_wants_to_see(plane: ControlPlane, cluster: Cluster, namespace: str) -> None:
    create(cluster, item_of("decode: {}", namespace)).raise_for_status()
    status: dict[str, Any] = {
        "conditions": [condition("Ready", "True")],
        "readyPairs": 3,
        "version": "abc",
        "url": "http://x/v1",
    }
    cluster.patch(BATON, "inferenceservices", namespace, "chat", {"status": status}, "status")
    done = plane.run("kubectl", "get", "bisvc", "-n", namespace)
    header, row = done.stdout.splitlines()
    assert header.split() == ["NAME", "READY", "PAIRS", "VERSION", "URL", "AGE"]
    assert row.split()[:5] == ["chat", "True", "3", "abc", "http://x/v1"]
    waited = plane.run("kubectl", "wait", "bisvc/chat", "-n", namespace, "--for=condition=Ready", "--timeout=5s")
    assert waited.returncode == 0, waited.stderr
    explained = plane.run("kubectl", "explain", "inferenceservices.spec.transfer.protocol", "--api-version", BATON)
    assert "nvlink needs prefill and decode on one machine" in " ".join(explained.stdout.split())


def test_a_status_is_written_apart_from_the_spec(cluster: Cluster, namespace: str) -> None:
    made = create(cluster, item_of("decode: {}", namespace)).raise_for_status().json()
    change = {"status": {"version": "abc"}, "spec": {"gateway": {"port": 81}}}
    after = cluster.patch(BATON, "inferenceservices", namespace, "chat", change, "status")
    assert (after["status"]["version"], after["spec"]["gateway"]["port"]) == ("abc", 8000)
    assert after["metadata"]["generation"] == made["metadata"]["generation"]


def test_a_scaler_is_scaled_like_a_deployment(plane: ControlPlane, cluster: Cluster, namespace: str) -> None:
    item: Item = {"apiVersion": BATON, "kind": "WorkerScaler", "metadata": {"name": "chat-decode"}, "spec": {}}
    cluster.create(BATON, "workerscalers", namespace, item)
    done = plane.run("kubectl", "scale", "workerscaler/chat-decode", "--replicas=5", "-n", namespace)
    assert done.returncode == 0, done.stderr
    cluster.patch(
        BATON, "workerscalers", namespace, "chat-decode", {"status": {"replicas": 4, "selector": "a=b"}}, "status"
    )
    path = cluster.path(BATON, "workerscalers", namespace, "chat-decode", "scale")
    scale = cluster.http.get(path).raise_for_status().json()
    assert (scale["spec"], scale["status"]) == ({"replicas": 5}, {"replicas": 4, "selector": "a=b"})


def condition(kind: str, status: str) -> dict[str, Any]:
    when = "2030-01-01T00:00:00Z"
    return {
        "type": kind,
        "status": status,
        "reason": "Test",
        "message": "m",
        "lastTransitionTime": when,
        "observedGeneration": 1,
    }
