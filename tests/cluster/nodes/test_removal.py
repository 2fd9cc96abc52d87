"""What is left when the release, or a service, is removed."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.conftest import SYSTEM
from cluster.nodes.deployment import Deployment
from support.kube.client import eventually
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


def test_it_goes_with_everything_once_the_services_are_gone(
    quickstart: Deployment, release: Sequence[str], person: Person
) -> None:
    quickstart.delete()
    eventually(lambda: quickstart.leftovers() == [], 60.0, quickstart.leftovers)
    person.helm("uninstall", "baton", "--namespace", SYSTEM, "--wait")
    eventually(lambda: not _released(person), 60.0, lambda: _released(person))
    assert "inferenceservices.baton.dev" in person.kubectl("get", "crd", "--output", "name")
    person.kubectl("delete", "namespace", quickstart.namespace, SYSTEM, within=300.0)


def _released(person: Person) -> list[str]:
    found = person.kubectl("get", ",".join(KINDS), "--all-namespaces", "--selector", RELEASED, "--output", "name")
    return found.split()
