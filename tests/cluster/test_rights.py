"""The rights that the chart gives are those that the API server's audit log shows the operator to use, no rule more."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from cluster.conftest import ROOT, SYSTEM
from cluster.services import ServiceUnderTest
from support.kube import binaries
from support.kube.client import BATON, Cluster, Item, eventually
from support.kube.control_plane import ControlPlane
from support.kube.kubelet import Kubelet
from support.kube.operator_process import OperatorProcess

OPERATOR = f"system:serviceaccount:{SYSTEM}:baton"
RULES = ROOT / "charts/baton/files/rules.yaml"
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
    "security": {"mutualTls": True},
    "gateway": {"ingress": {"host": "a.example"}, "route": {"parents": [{"name": "g"}]}},
    "metrics": {"podMonitor": True},
    "bootstrap": {"replicas": 2},
}

Right = tuple[str, str, str]  # API group, resource, verb


def test_the_chart_gives_the_rights_that_are_used_and_no_other(
    installed: ControlPlane, cluster: Cluster, kubelet: Kubelet, namespace: str, rights: Path, tmp_path: Path
) -> None:
    define_optional(installed)
    service = ServiceUnderTest(cluster, namespace)
    with OperatorProcess(tmp_path, rights, "--resync-seconds", "2") as operator:
        service.apply(**EVERYTHING)
        eventually(lambda: all(lists(cluster, namespace, plural) for plural in OPTIONAL), 60.0, service.get)
        assert service.condition("Degraded")["reason"] != "ObjectRefused"
        eventually(lambda: cluster.find(BATON, "workerscalers", namespace, "chat-decode"))
        cluster.patch(BATON, "workerscalers", namespace, "chat-decode", {"spec": {"replicas": 2}}, "scale")
        eventually(lambda: service.condition("Progressing")["status"] == "True")
        # Turning it all off deletes an object of every kind but the two that a service always has.
        service.apply(security={"networkPolicies": False, "mutualTls": True}, prefill={"replicas": 0})
        eventually(lambda: not any(lists(cluster, namespace, plural) for plural in OPTIONAL), 60.0)
        eventually(lambda: service.is_ready(), 60.0, service.get)
        orphans(service)
        service.delete()
        eventually(lambda: service.get() is None)
        assert operator.stop() == 0
        assert "forbidden" not in operator.log, operator.log
    assert used(installed) | BY_ADMISSION == granted()


def orphans(service: ServiceUnderTest) -> None:
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
    for kind in ("ServiceAccount", "Secret"):
        service.cluster.create("v1", f"{kind.lower()}s", service.namespace, {"metadata": metadata})
        eventually(lambda: (kind, "orphan") not in service.children())  # noqa: B023  (called within the turn)


def define_optional(plane: ControlPlane) -> None:
    """The real definitions of two; of the third, whose module nobody distributes, what the operator sees of it."""
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


def used(plane: ControlPlane) -> set[Right]:
    """Creating by server-side apply takes the right to patch and the right to create."""
    found: set[Right] = set()
    for entry in plane.audit():
        place = entry.get("objectRef", {})
        if entry["user"]["username"] != OPERATOR or place.get("resource") in (None, "leases"):
            continue
        part = f"/{place['subresource']}" if "subresource" in place else ""
        group, resource = place.get("apiGroup", ""), f"{place['resource']}{part}"
        found.add((group, resource, entry["verb"]))
        if entry["verb"] == "patch" and entry["responseStatus"].get("code") == 201:
            found.add((group, resource, "create"))
    return found


def granted() -> set[Right]:
    return {
        (group, resource, verb)
        for rule in yaml.safe_load(RULES.read_text())
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
    assert limited.http.get(limited.path("v1", "secrets", SYSTEM)).status_code == 403
