"""The rights that the chart gives are those that the API server's audit log shows the operator to use, no rule more."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.conftest import ROOT, SYSTEM
from cluster.services import ServiceUnderTest
from support.kube import binaries
from support.kube.client import BATON, Cluster, Item, eventually
from support.kube.control_plane import ControlPlane
from support.kube.operator_process import OperatorProcess

FILES = ROOT / "charts/baton/files"
# Looked at by a plugin of the API server when an owner reference is written, which the audit log does not show.
BY_ADMISSION = {("baton.dev", "inferenceservices/finalizers", "update")}
# Kinds that other projects define, and their API versions.
OPTIONAL = {
    "leaderworkersets": "leaderworkerset.x-k8s.io/v1",
    "httproutes": "gateway.networking.k8s.io/v1",
    "podmonitors": "monitoring.coreos.com/v1",
}
EVERYTHING: dict[str, Any] = {
    "prefill": {"parallelism": {"tensor": 2, "nodes": 2}, "autoscaling": {"maxReplicas": 3}},
    "decode": {"parallelism": {"tensor": 2}, "autoscaling": {"driver": "external", "maxReplicas": 3}},
    "gateway": {"ingress": {"host": "a.example"}, "route": {"parents": [{"name": "g"}]}},
    "metrics": {"podMonitor": True},
    "bootstrap": {"replicas": 2},
}

Right = tuple[str, str, str]  # API group, resource, verb


@pytest.fixture(scope="module")
def everywhere(installed: ControlPlane) -> None:
    """The real definitions of two optional kinds; of the third, whose module nobody distributes, what the operator sees
    of it."""
    define_optional(installed)


@pytest.mark.usefixtures("everywhere", "kubelet", "spanning")
def test_the_chart_gives_the_rights_that_are_used_and_no_other(
    installed: ControlPlane, cluster: Cluster, namespace: str, rights: Path, tmp_path: Path
) -> None:
    """With Secrets."""
    service = ServiceUnderTest(cluster, namespace)
    with OperatorProcess(tmp_path, rights, "--resync-seconds", "2") as operator:
        live_through_everything(service, operator, {"mutualTls": True}, ("ServiceAccount", "Secret"))
        shared = {"stringData": {"token": "s3cret"}, "metadata": {"name": "shared"}}
        cluster.create("v1", "secrets", namespace, shared)
        service.apply(security={"token": {"name": "shared", "key": "token"}})
        service.wait_ready(60.0)
        assert service.condition("Degraded")["status"] == "False"
        finish(service, operator)
    assert used(installed, f"system:serviceaccount:{SYSTEM}:baton") | BY_ADMISSION == granted("rules", "secret-rules")


@pytest.mark.usefixtures("everywhere", "kubelet", "spanning")
def test_without_secrets_it_needs_none_and_says_when_it_lacks_them(
    installed: ControlPlane, cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    words = ["--namespace", namespace, "--set", f"namespaces={{{namespace}}},crds.install=false"]
    done = installed.run("helm", "install", "bare", str(ROOT / "charts/baton"), *words)
    assert done.returncode == 0, done.stderr
    rights = installed.kubeconfig("bare", cluster.token(namespace, "bare-baton"))
    flags = ["--namespace", namespace, "--lease", "bare-baton", "--resync-seconds", "2"]
    service = ServiceUnderTest(cluster, namespace)
    with OperatorProcess(tmp_path, rights, *flags, environment={"POD_NAMESPACE": namespace}) as operator:
        live_through_everything(service, operator, {}, ("ServiceAccount",))
        user = f"system:serviceaccount:{namespace}:bare-baton"
        assert used(installed, user) | BY_ADMISSION == granted("rules")
        service.apply(security={"token": {"name": "shared", "key": "token"}})
        eventually(lambda: service.condition("Degraded")["reason"] == "TokenUnreadable", why=service.get)
        assert "secrets: true" in service.condition("Degraded")["message"]
        service.delete()
        eventually(lambda: service.get() is None, 60.0)
        service.apply(security={"mutualTls": True})
        eventually(lambda: service.condition("Stalled")["reason"] == "SecretsForbidden", why=service.get)
        assert "secrets: true" in service.condition("Stalled")["message"]
        finish(service, operator)
    assert installed.run("helm", "uninstall", "bare", "--no-hooks", "--namespace", namespace).returncode == 0


def live_through_everything(
    service: ServiceUnderTest, operator: OperatorProcess, security: dict[str, Any], kinds: tuple[str, ...]
) -> None:
    """A service with everything, then with nothing of it, and an orphan of `kinds`."""
    cluster, namespace = service.cluster, service.namespace
    service.apply(**EVERYTHING, security=security)
    eventually(lambda: all(lists(cluster, namespace, plural) for plural in OPTIONAL), 60.0, service.get)
    assert service.condition("Degraded")["reason"] != "ObjectRefused"
    scaler = partial(cluster.find, BATON, "workerscalers", namespace, "chat-decode")
    eventually(lambda: (scaler() or {}).get("status"))
    cluster.patch(BATON, "workerscalers", namespace, "chat-decode", {"spec": {"replicas": 2}}, "scale")
    eventually(lambda: service.condition("Progressing")["status"] == "True")
    # Turning it all off deletes an object of every kind but those that a service always has.
    service.apply(security={"networkPolicies": False, **security}, prefill={"replicas": 0})
    eventually(lambda: not any(lists(cluster, namespace, plural) for plural in OPTIONAL), 60.0)
    eventually(lambda: service.is_ready(), 60.0, service.get)
    orphans(service, kinds)
    service.delete()
    eventually(lambda: service.get() is None, 60.0)
    assert "forbidden" not in operator.log, operator.log


def finish(service: ServiceUnderTest, operator: OperatorProcess) -> None:
    service.delete()
    eventually(lambda: service.get() is None, 60.0)
    assert operator.stop() == 0


def orphans(service: ServiceUnderTest, kinds: tuple[str, ...]) -> None:
    """A second of what a service has one of, as an earlier release may have left: it is deleted."""
    owner = (service.get() or {})["metadata"]
    reference = {
        "apiVersion": BATON,
        "kind": "InferenceService",
        "name": "chat",
        "uid": owner["uid"],
        "controller": True,
    }
    metadata = {"name": "orphan", "labels": {"baton.dev/service": "chat"}, "ownerReferences": [reference]}
    for kind in kinds:
        service.cluster.create("v1", f"{kind.lower()}s", service.namespace, {"metadata": metadata})
        eventually(lambda: (kind, "orphan") not in service.children())  # noqa: B023  (called within the turn)


def define_optional(plane: ControlPlane) -> None:
    programs, _ = binaries.find()
    for name in ("leaderworkersets", "httproutes"):
        done = plane.run("kubectl", "apply", "--server-side", "-f", str(programs[f"{name}.yaml"]))
        assert done.returncode == 0, done.stderr
    keep: Item = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    one = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": keep}}
    names = {"kind": "PodMonitor", "plural": "podmonitors", "singular": "podmonitor", "listKind": "PodMonitorList"}
    spec = {"group": "monitoring.coreos.com", "scope": "Namespaced", "names": names, "versions": [one]}
    item = {"metadata": {"name": "podmonitors.monitoring.coreos.com"}, "spec": spec}
    admin = plane.admin()
    admin.create("apiextensions.k8s.io/v1", "customresourcedefinitions", "", item)
    for plural, version in OPTIONAL.items():
        eventually(partial(admin.serves, version, plural))


def lists(cluster: Cluster, namespace: str, plural: str) -> list[Item]:
    return cluster.list(OPTIONAL[plural], plural, namespace)


def used(plane: ControlPlane, user: str) -> set[Right]:
    """Creating by server-side apply takes the right to patch and the right to create."""
    found: set[Right] = set()
    for entry in plane.audit():
        place = entry.get("objectRef", {})
        if entry["user"]["username"] != user or place.get("resource") in (None, "leases"):
            continue
        part = f"/{place['subresource']}" if "subresource" in place else ""
        group, resource = place.get("apiGroup", ""), f"{place['resource']}{part}"
        found.add((group, resource, entry["verb"]))
        if entry["verb"] == "patch" and entry["responseStatus"].get("code") == 201:
            found.add((group, resource, "create"))
    return found


def granted(*names: str) -> set[Right]:
    return {
        (group, resource, verb)
        for name in names
        for rule in yaml.safe_load((FILES / f"{name}.yaml").read_text())
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_lease_is_the_only_one_that_may_be_touched(installed: ControlPlane, rights: Path) -> None:
    token = json.loads(rights.read_text())["users"][0]["user"]["token"]
    limited = Cluster(installed.url, installed.ca, token)
    own = limited.path("coordination.k8s.io/v1", "leases", SYSTEM, "baton")
    assert limited.http.get(own).status_code in (200, 404)
    other = limited.path("coordination.k8s.io/v1", "leases", SYSTEM, "another")
    assert limited.http.get(other).status_code == 403
    assert limited.http.get(limited.path("v1", "configmaps", SYSTEM)).status_code == 403
