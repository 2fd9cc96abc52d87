"""What is left when the release, or a service, is removed."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.conftest import SYSTEM
from cluster.nodes.conftest import restricted
from cluster.nodes.deployment import Deployment
from support.kube.client import Cluster, eventually
from support.kube.person import Person

RELEASED = "app.kubernetes.io/instance=baton"
KINDS = (
    *("deployments", "replicasets", "pods", "jobs", "serviceaccounts", "leases", "configmaps"),
    *("roles", "rolebindings", "clusterroles", "clusterrolebindings"),
)


def test_the_release_stays_while_a_service_exists(quickstart: Deployment) -> None:
    refused = quickstart.person.attempt("helm", "uninstall", "baton", "--namespace", SYSTEM, within=180.0)
    assert refused.returncode != 0
    assert "services exist: quickstart/quickstart" in refused.stdout + refused.stderr
    assert "helm uninstall --no-hooks" in refused.stdout + refused.stderr
    operator = quickstart.cluster.get("apps/v1", "deployments", SYSTEM, "baton")
    assert operator["status"]["readyReplicas"] == 1
    assert quickstart.answers(1) == ["first"]


def test_a_flag_removes_it_and_leaves_the_services_running(
    quickstart: Deployment, release: Sequence[str], person: Person
) -> None:
    before = {pod["metadata"]["uid"] for pod in quickstart.pods()}
    person.helm("uninstall", "baton", "--namespace", SYSTEM, "--no-hooks", "--wait")
    assert quickstart.answers(2) == ["first"] * 2
    person.helm("install", *release, "--wait", "--timeout", "120s")
    quickstart.wait_settled(120.0)
    assert {pod["metadata"]["uid"] for pod in quickstart.pods()} == before


def test_it_goes_with_everything_once_the_services_are_gone(
    quickstart: Deployment, release: Sequence[str], person: Person
) -> None:
    quickstart.delete()
    eventually(lambda: quickstart.leftovers() == [], 60.0, quickstart.leftovers)
    person.helm("uninstall", "baton", "--namespace", SYSTEM, "--wait")
    eventually(lambda: not _released(person), 60.0, lambda: _released(person))
    assert "inferenceservices.baton.dev" in person.kubectl("get", "crd", "--output", "name")
    person.kubectl("delete", "namespace", quickstart.namespace, SYSTEM, within=300.0)


def test_the_definitions_go_too_where_that_was_asked_for(
    release: Sequence[str], person: Person, cluster: Cluster
) -> None:
    cluster.create("v1", "namespaces", "", restricted(SYSTEM))
    person.helm("install", *release, "--set", "crds.keep=false", "--wait", "--timeout", "120s")
    person.helm("uninstall", "baton", "--namespace", SYSTEM, "--wait")
    eventually(lambda: "baton.dev" not in person.kubectl("get", "crd", "--output", "name"), 60.0, pause=0.5)
    person.kubectl("delete", "namespace", SYSTEM, within=120.0)


def _released(person: Person) -> list[str]:
    found = person.kubectl("get", ",".join(KINDS), "--all-namespaces", "--selector", RELEASED, "--output", "name")
    return found.split()
