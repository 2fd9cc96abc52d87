"""The chart, with a real Helm on a real API server: linted, installed, upgraded, removed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from cluster.conftest import ROOT
from cluster.services import ServiceUnderTest
from support.kube.client import BATON, Cluster, eventually
from support.kube.control_plane import ControlPlane
from support.kube.kubelet import Kubelet
from support.kube.operator_process import OperatorProcess

CHART = str(ROOT / "charts/baton")
DEFINITIONS = "customresourcedefinitions"
EXTENSIONS = "apiextensions.k8s.io/v1"
# Kinds of the Prometheus operator, which is not installed here.
FOREIGN = {"ServiceMonitor", "PrometheusRule"}
EVERYTHING = {
    "namespaces": ["default"],
    "images": {"pullSecrets": ["s"]},
    "operator": {
        "replicas": 2,
        "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "priorityClassName": "high",
    },
    "metrics": {"serviceMonitor": True, "alerts": True, "labels": {"team": "a"}},
}


def template(plane: ControlPlane, values: dict[str, Any]) -> list[dict[str, Any]]:
    path = plane.folder / "values.yaml"
    path.write_text(yaml.dump(values))
    done = plane.run("helm", "template", "other", CHART, "--namespace", "default", "--values", str(path))
    assert done.returncode == 0, done.stderr
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def test_helm_finds_nothing_to_complain_about(plane: ControlPlane) -> None:
    done = plane.run("helm", "lint", "--strict", CHART)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["plain", "everything"])
def test_the_api_server_takes_what_the_templates_make(installed: ControlPlane, values: dict[str, Any]) -> None:
    items = [item for item in template(installed, values) if item["kind"] not in FOREIGN]
    text = yaml.dump_all(items)
    done = installed.run(
        "kubectl", "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", text=text
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(items) > 6


def test_foreign_kinds_are_made_only_when_asked_for(installed: ControlPlane) -> None:
    assert {item["kind"] for item in template(installed, {})} & FOREIGN == set()
    assert {item["kind"] for item in template(installed, EVERYTHING)} >= FOREIGN


@pytest.mark.parametrize(
    ("values", "complaint"),
    [("operator.replicas=0", "minimum"), ("image=x", "image"), ("operator.logLevel=loud", "logLevel")],
    ids=["no_replicas", "misspelt", "unknown_level"],
)
def test_wrong_values_are_refused_by_their_schema(plane: ControlPlane, values: str, complaint: str) -> None:
    done = plane.run("helm", "template", "other", CHART, "--set", values)
    assert done.returncode != 0
    assert complaint in done.stderr


def test_secrets_are_out_of_reach_unless_asked_for(installed: ControlPlane) -> None:
    rules = {
        asked: [rule for item in template(installed, values) if item["kind"] == "ClusterRole" for rule in item["rules"]]
        for asked, values in ((False, {}), (True, {"secrets": True}))
    }
    assert not any("secrets" in rule["resources"] for rule in rules[False])
    assert [rule for rule in rules[True] if rule not in rules[False]] == [
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "create", "patch", "delete"]}
    ]


@pytest.fixture
def scoped(installed: ControlPlane, namespace: str) -> Iterator[str]:
    """A second release that looks after this one namespace alone, and lives in it."""
    words = ["--namespace", namespace, "--set", f"namespaces={{{namespace}}},crds.install=false"]
    done = installed.run("helm", "install", "scoped", CHART, *words)
    assert done.returncode == 0, done.stderr
    yield namespace
    assert installed.run("helm", "uninstall", "scoped", "--no-hooks", "--namespace", namespace).returncode == 0


def test_a_release_for_one_namespace_has_rights_there_alone(
    installed: ControlPlane, cluster: Cluster, scoped: str, kubelet: Kubelet, tmp_path: Path
) -> None:
    token = cluster.token(scoped, "scoped-baton")
    rights = installed.kubeconfig("scoped", token)
    with pytest.raises(httpx.HTTPStatusError, match="forbidden"):
        Cluster(installed.url, installed.ca, token).list(BATON, "inferenceservices")
    flags = ["--namespace", scoped, "--lease", "scoped-baton", "--resync-seconds", "5"]
    with OperatorProcess(tmp_path, rights, *flags, environment={"POD_NAMESPACE": scoped}) as operator:
        service = ServiceUnderTest(cluster, scoped)
        service.apply()
        service.wait_ready(60.0)
        service.delete()
        eventually(lambda: service.get() is None)
        assert operator.stop() == 0
        assert "forbidden" not in operator.log


def test_an_upgrade_keeps_services_and_a_removal_leaves_only_the_definitions(installed: ControlPlane) -> None:
    """What the notes say is done: release, services, definitions. Everything is put back for the tests that follow."""
    place = ["--namespace", "baton-system"]
    cluster = installed.admin()
    service = ServiceUnderTest(cluster, "default", "kept")
    service.apply()
    chosen = ["--set", "operator.logLevel=debug,secrets=true"]
    upgraded = installed.run("helm", "upgrade", "baton", CHART, *place, *chosen)
    assert upgraded.returncode == 0, upgraded.stderr
    deployment = cluster.get("apps/v1", "deployments", "baton-system", "baton")
    assert "--log-level=debug" in deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert installed.run("helm", "uninstall", "baton", "--no-hooks", *place).returncode == 0
    assert service.get() is not None
    service.delete()
    mark = "app.kubernetes.io/instance=baton"
    for version, plural in (
        ("apps/v1", "deployments"),
        ("v1", "serviceaccounts"),
        ("rbac.authorization.k8s.io/v1", "clusterroles"),
        ("rbac.authorization.k8s.io/v1", "clusterrolebindings"),
        ("rbac.authorization.k8s.io/v1", "roles"),
        ("rbac.authorization.k8s.io/v1", "rolebindings"),
    ):
        eventually(lambda version=version, plural=plural: not cluster.list(version, plural, "", mark))  # type: ignore[misc]
    definitions = {item["metadata"]["name"] for item in cluster.list(EXTENSIONS, DEFINITIONS)}
    assert {"inferenceservices.baton.dev", "workerscalers.baton.dev"} <= definitions
    again = installed.run("helm", "install", "baton", CHART, *place, "--set", "secrets=true")
    assert again.returncode == 0, again.stderr


def test_the_operator_says_whether_it_may_be_removed(cluster: Cluster, namespace: str, rights: Path) -> None:
    """What the chart's hook asks before the release goes."""
    scope = ["--namespace", namespace]
    assert check_removal(rights, *scope).returncode == 0
    ServiceUnderTest(cluster, namespace).apply()
    for flags in (scope, []):
        refused = check_removal(rights, *flags)
        assert refused.returncode == 1
        assert f"services exist: {namespace}/chat" in refused.stderr


def check_removal(rights: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "baton_serving.cli.main", "operator", "--check-removal", *flags]
    environment = {**os.environ, "KUBECONFIG": str(rights), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
