"""A service's life under a real operator: made, changed, scaled, rolled out, removed."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from typing import Any

import httpx
import pytest
from cluster.services import ServiceUnderTest
from support.kube.client import BATON, Cluster, Item, eventually, labels_of
from support.kube.control_plane import ControlPlane
from support.kube.kubelet import Kubelet, ready
from support.kube.operator_process import OperatorProcess

FIRST = {
    ("Deployment", "chat-bootstrap-0"),
    ("Deployment", "chat-gateway"),
    ("NetworkPolicy", "chat-bootstrap"),
    ("NetworkPolicy", "chat-gateway"),
    ("NetworkPolicy", "chat-workers"),
    ("PodDisruptionBudget", "chat-gateway"),
    ("Service", "chat"),
    ("Service", "chat-bootstrap-0"),
    ("ServiceAccount", "chat-pods"),
}


@pytest.fixture
def service(cluster: Cluster, namespace: str, operator: OperatorProcess) -> ServiceUnderTest:
    return ServiceUnderTest(cluster, namespace)


READS = 'baton_operator_api_calls_total{resource="inferenceservices",verb="get"}'


def by_role(children: dict[tuple[str, str], Item], kind: str = "Deployment") -> dict[str, Item]:
    """Workloads by role, where each has one."""
    found = {
        labels_of(item)["app.kubernetes.io/component"]: item for (each, _), item in children.items() if each == kind
    }
    return {role: found[role] for role in ("prefill", "decode") if role in found}


def versions(children: dict[tuple[str, str], Item]) -> dict[tuple[str, str], Any]:
    """What changes when, and only when, somebody changes an object: status and bookkeeping left out."""
    kept = ("spec", "data", "revision")
    return {
        key: ({name: item.get(name) for name in kept}, item["metadata"]["uid"], labels_of(item), annotations_of(item))
        for key, item in children.items()
    }


def annotations_of(item: Item) -> dict[str, str]:
    """The Deployment controller counts its revisions in one."""
    found = item["metadata"].get("annotations", {})
    return {name: value for name, value in found.items() if name != "deployment.kubernetes.io/revision"}


def test_it_is_made_within_five_seconds_and_becomes_ready(service: ServiceUnderTest, kubelet: Kubelet) -> None:
    service.apply()
    eventually(lambda: len(service.children()) >= 15, 5.0, service.children)
    service.wait_ready()
    children = service.children()
    assert {key for key in children if not key[1].startswith(("chat-prefill-", "chat-decode-"))} == FIRST
    for kind in ("Deployment", "ControllerRevision", "PodDisruptionBudget"):
        assert set(by_role(children, kind)) == {"prefill", "decode"}
    item = service.get()
    assert item is not None
    assert item["status"]["readyPairs"] == 1
    assert item["status"]["url"] == f"http://chat.{service.namespace}.svc.cluster.local:8000/v1"
    assert item["metadata"]["finalizers"] == ["baton.dev/drain"]
    assert not item["metadata"].get("annotations")
    eventually(lambda: service.condition("Available")["status"] == "True")


def test_a_service_at_rest_is_left_alone(
    service: ServiceUnderTest, kubelet: Kubelet, operator: OperatorProcess
) -> None:
    service.apply()
    service.wait_settled()
    before = resource_versions(service)
    rounds = operator.rounds()
    eventually(lambda: operator.rounds() >= rounds + 2)
    assert resource_versions(service) == before
    eventually(lambda: reads_in_two_rounds(operator) == 0, 60.0)


def reads_in_two_rounds(operator: OperatorProcess) -> float:
    """A resync lists every kind once; a round reads a service of its own only where there may be something to do."""
    rounds, reads = operator.rounds(), operator.metric(READS)
    eventually(lambda: operator.rounds() >= rounds + 2)
    return operator.metric(READS) - reads


CHANGES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "gateway_replicas": ({"gateway": {"replicas": 2}}, {"Deployment chat-gateway"}),
    "gateway_port": ({"gateway": {"port": 80}}, {"Service chat"}),
    "gateway_policy": ({"gateway": {"policy": "round_robin"}}, {"Deployment chat-gateway"}),
    "gateway_attempts": ({"gateway": {"attempts": 5}}, {"Deployment chat-gateway"}),
    "gateway_wait": ({"gateway": {"workerWaitSeconds": 9}}, {"Deployment chat-gateway"}),
    "gateway_image": ({"gateway": {"image": "mine:1"}}, {"Deployment chat-gateway"}),
    "gateway_resources": ({"gateway": {"resources": {"requests": {"cpu": "1"}}}}, {"Deployment chat-gateway"}),
    "gateway_placement": ({"gateway": {"placement": {"nodeSelector": {"a": "b"}}}}, {"Deployment chat-gateway"}),
    "gateway_env": ({"gateway": {"env": [{"name": "A", "value": "b"}]}}, {"Deployment chat-gateway"}),
    "gateway_overrides": ({"gateway": {"overrides": {"spec": {"hostname": "h"}}}}, {"Deployment chat-gateway"}),
    "gateway_api_keys": (
        {"gateway": {"apiKeys": {"secret": "clients"}}},
        {"Deployment chat-gateway", "NetworkPolicy chat-gateway"},
    ),
    "gateway_service": ({"gateway": {"service": {"type": "NodePort"}}}, {"Service chat"}),
    "service_annotations": ({"gateway": {"service": {"annotations": {"a": "b"}}}}, {"Service chat"}),
    "ingress": ({"gateway": {"ingress": {"host": "a.example"}}}, {"Ingress chat"}),
    "bootstrap_lease": ({"bootstrap": {"leaseSeconds": 5}}, {"Deployment chat-bootstrap-0"}),
    "bootstrap_image": ({"bootstrap": {"image": "mine:1"}}, {"Deployment chat-bootstrap-0"}),
    "bootstrap_env": ({"bootstrap": {"env": [{"name": "A", "value": "b"}]}}, {"Deployment chat-bootstrap-0"}),
    "progress_deadline": ({"rollout": {"progressSeconds": 99}}, set()),
    "paused": ({"rollout": {"paused": True}}, set()),
    "prefill_replicas": ({"prefill": {"replicas": 2}}, {"Deployment prefill"}),
    "decode_replicas": ({"decode": {"replicas": 3}}, {"Deployment decode"}),
    "scaler": ({"decode": {"autoscaling": {"maxReplicas": 4}}}, {"WorkerScaler chat-decode"}),
    "no_policies": (
        {"security": {"networkPolicies": False}},
        {"NetworkPolicy chat-bootstrap", "NetworkPolicy chat-gateway", "NetworkPolicy chat-workers"},
    ),
    "scrapers": (
        {"metrics": {"namespaces": {"team": "watch"}}},
        {"NetworkPolicy chat-bootstrap", "NetworkPolicy chat-workers"},
    ),
}


def test_a_change_reaches_the_right_children_and_no_other(service: ServiceUnderTest, kubelet: Kubelet) -> None:
    """Each change is made to the plain service, looked at, and taken back."""
    for name, (spec, expected) in CHANGES.items():
        service.apply()
        service.wait_settled()
        plain = versions(service.children())
        service.apply(**spec)
        difference = partial(difference_from, plain, service)
        eventually(lambda expected=expected, now=difference: now() == expected, why=difference)  # type: ignore[misc]
        service.wait_settled()
        assert difference() == expected, name
    service.apply()
    eventually(lambda: len(service.children()) == 15, why=service.children)


@pytest.mark.parametrize(
    ("spec", "roles"),
    [
        ({"decode": {"shmSize": "1Gi"}}, {"decode"}),
        ({"prefill": {"resources": {"requests": {"cpu": "1"}}}}, {"prefill"}),
        ({"decode": {"extraArgs": ["--page-size", "64"]}}, {"prefill", "decode"}),
        ({"model": {"uri": "hf://owner/other"}}, {"prefill", "decode"}),
    ],
    ids=["decode_only", "prefill_only", "flags", "model"],
)
def test_a_change_of_what_pods_see_makes_new_workloads(
    service: ServiceUnderTest, kubelet: Kubelet, spec: dict[str, Any], roles: set[str]
) -> None:
    service.apply()
    service.wait_settled()
    before = by_role(service.children())
    service.apply(**spec)
    eventually(lambda: len([key for key in service.children() if key[0] == "ControllerRevision"]) > 2)
    service.wait_settled()
    after = by_role(service.children())
    replaced = {role for role in after if after[role]["metadata"]["name"] != before[role]["metadata"]["name"]}
    assert replaced == roles
    for role in {"prefill", "decode"} - roles:
        assert after[role]["metadata"]["generation"] == before[role]["metadata"]["generation"]
    workloads = [key for key in service.children() if key[0] == "Deployment"]
    assert len(workloads) == 4


def test_new_workers_come_up_before_old_ones_leave(service: ServiceUnderTest, kubelet: Kubelet) -> None:
    service.apply()
    service.wait_settled()
    old = by_role(service.children())
    names = {item["metadata"]["name"] for item in old.values()}
    kubelet.verdict = lambda pod: ready(pod) if pod["metadata"]["name"].rsplit("-", 2)[0] in names else None
    service.apply(model={"uri": "hf://owner/other"})
    eventually(lambda: len([key for key in service.children() if key[0] == "Deployment"]) == 6)
    assert service.condition("Available")["status"] == "True"
    assert all(service.children()["Deployment", name]["spec"]["replicas"] == 1 for name in names)
    kubelet.verdict = ready
    service.wait_settled()
    assert not names & {name for _, name in service.children()}


def test_a_scaler_moves_the_workers_and_the_manifest_stays(service: ServiceUnderTest, kubelet: Kubelet) -> None:
    service.apply(decode={"autoscaling": {"driver": "external", "maxReplicas": 4}})
    service.wait_settled()
    cluster, place = service.cluster, service.namespace
    cluster.patch(BATON, "workerscalers", place, "chat-decode", {"spec": {"replicas": 3}}, "scale")
    eventually(lambda: by_role(service.children())["decode"]["spec"]["replicas"] == 3)
    eventually(lambda: cluster.get(BATON, "workerscalers", place, "chat-decode").get("status", {}).get("replicas") == 3)
    item = service.get()
    assert item is not None
    assert item["spec"]["decode"]["replicas"] == 1


def test_certificates_are_made_and_stay(service: ServiceUnderTest, kubelet: Kubelet) -> None:
    """Rounds change nothing while nothing is due; the choice itself cannot be changed."""
    service.apply(security={"mutualTls": True})
    service.wait_ready()
    names = ["chat-authority", "chat-bootstrap-tls", "chat-gateway-tls", "chat-workers-tls"]
    made = {name: item for (kind, name), item in service.children().items() if kind == "Secret"}
    assert sorted(made) == names
    pods = service.cluster.list("v1", "pods", service.namespace, "baton.dev/service=chat")
    mounted = {
        volume["secret"]["secretName"] for pod in pods for volume in pod["spec"]["volumes"] if "secret" in volume
    }
    assert mounted == set(names[1:])
    with pytest.raises(httpx.HTTPStatusError) as refusal:
        service.apply()
    assert "make a service of another name" in refusal.value.response.text
    service.cluster.delete("v1", "secrets", service.namespace, "chat-gateway-tls")
    eventually(lambda: ("Secret", "chat-gateway-tls") in service.children())
    kept = {name: service.children()["Secret", name]["data"] for name in names if name != "chat-gateway-tls"}
    assert kept == {name: made[name]["data"] for name in kept}


def test_what_somebody_else_does_to_a_child_is_put_right(service: ServiceUnderTest, kubelet: Kubelet) -> None:
    """Some kinds are watched, the others are looked at in every resync."""
    service.apply()
    service.wait_settled()
    place, cluster = service.namespace, service.cluster
    cluster.patch("apps/v1", "deployments", place, "chat-gateway", {"spec": {"replicas": 7}})
    cluster.delete("v1", "services", place, "chat")
    cluster.patch("networking.k8s.io/v1", "networkpolicies", place, "chat-workers", {"spec": {"egress": None}})
    eventually(lambda: service.children()["Deployment", "chat-gateway"]["spec"]["replicas"] == 1)
    eventually(lambda: ("Service", "chat") in service.children())
    eventually(lambda: service.children()["NetworkPolicy", "chat-workers"]["spec"].get("egress"))


def test_a_foreign_object_of_the_same_name_is_not_touched(service: ServiceUnderTest, kubelet: Kubelet) -> None:
    """It has no owner, so it is neither counted nor deleted with the service."""
    service.apply()
    service.wait_ready()
    metadata = {"name": "mine", "labels": {"baton.dev/service": "chat"}}
    service.cluster.create("v1", "serviceaccounts", service.namespace, {"metadata": metadata})
    service.delete()
    eventually(lambda: service.get() is None)
    eventually(lambda: service.leftovers() == ["ServiceAccount mine"], why=service.leftovers)


def test_nothing_is_left_of_a_deleted_service(service: ServiceUnderTest, kubelet: Kubelet) -> None:
    service.apply(decode={"autoscaling": {"maxReplicas": 4}}, gateway={"ingress": {"host": "a.example"}})
    service.wait_ready()
    service.delete()
    eventually(lambda: service.get() is None)
    eventually(lambda: service.leftovers() == [], why=service.leftovers)


def baton(plane: ControlPlane, *words: str) -> subprocess.CompletedProcess[str]:
    """`baton` as the administrator runs it."""
    rights = {"KUBECONFIG": str(plane.admin_kubeconfig()), "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "160"}
    command = [sys.executable, "-m", "baton_serving.cli.main", *words]
    return subprocess.run(
        command, env={**os.environ, **rights}, capture_output=True, text=True, timeout=60, check=False
    )


def test_baton_status_shows_it(service: ServiceUnderTest, kubelet: Kubelet, plane: ControlPlane) -> None:
    service.apply()
    service.wait_ready()
    done = baton(plane, "status", "chat", "--namespace", service.namespace)
    assert done.returncode == 0, done.stderr
    assert "1 ready pairs" in done.stdout
    assert "Ready: True, all is as the manifest says" in done.stdout
    missing = baton(plane, "status", "other")
    assert missing.returncode == 2
    assert 'inferenceservices.baton.dev "other" not found' in missing.stderr


def test_a_change_is_undone_paused_and_promoted_by_hand(
    service: ServiceUnderTest, kubelet: Kubelet, plane: ControlPlane
) -> None:
    """`baton rollout`, with the rights of whoever may edit the service."""

    def rollout(command: str, status: int = 0) -> str:
        done = baton(plane, "rollout", command, "chat", "-n", service.namespace)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    def phase() -> str:
        status = (service.get() or {}).get("status", {})
        return str(status.get("rollout", {}).get("phase", ""))

    def change(model: str) -> None:
        pairs = {role: {"replicas": 2} for role in ("prefill", "decode")}
        service.apply(model={"uri": f"hf://owner/{model}"}, rollout={"canaryPercent": 50}, **pairs)

    change("model")
    service.wait_settled()
    assert "nothing to undo" in rollout("undo", 2)
    change("other")
    eventually(lambda: phase() == "Paused", 30.0, phase)
    assert "promote it, or undo" in rollout("status")
    rollout("undo")
    eventually(lambda: phase() == "Failed", 30.0, phase)
    assert "undone by hand" in service.condition("Degraded")["message"]
    assert "RollingBack: " in rollout("status")
    change("third")
    eventually(lambda: phase() == "Paused", 30.0, phase)
    rollout("pause")
    assert (service.get() or {})["spec"]["rollout"]["paused"] is True
    rollout("resume")
    eventually(lambda: phase() == "Done", 30.0, phase)
    assert (service.get() or {})["spec"]["rollout"]["paused"] is False
    service.wait_settled()


CONTAINER = {"name": "worker", "image": "i", "imageID": "", "ready": False, "restartCount": 3}
CRASHING = {"waiting": {"reason": "CrashLoopBackOff"}}
ENDED = {"terminated": {"exitCode": 1, "message": "no such repository"}}
TROUBLES: dict[str, tuple[Item, str, str]] = {
    "image": (
        {
            "phase": "Pending",
            "containerStatuses": [
                {**CONTAINER, "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
            ],
        },
        "ImageMissing",
        "of the prefill pods cannot be pulled: no such image",
    ),
    "model": (
        {
            "phase": "Pending",
            "initContainerStatuses": [{**CONTAINER, "name": "fetch-model", "state": CRASHING, "lastState": ENDED}],
        },
        "ModelMissing",
        "the model cannot be fetched for prefill pods: no such repository",
    ),
    "node": (
        {"phase": "Running", "reason": "NodeLost", "conditions": [{"type": "Ready", "status": "Unknown"}]},
        "NodeLost",
        "does not answer; its prefill pod will be replaced",
    ),
}


@pytest.mark.parametrize(("verdict", "reason", "sentence"), TROUBLES.values(), ids=list(TROUBLES))
def test_the_status_says_why_nothing_comes_up(
    service: ServiceUnderTest, kubelet: Kubelet, verdict: Item, reason: str, sentence: str
) -> None:
    kubelet.verdict = lambda pod: verdict if "prefill" in pod["metadata"]["name"] else ready(pod)
    service.apply()
    eventually(lambda: service.condition("Degraded")["reason"] == reason, why=service.get)
    assert sentence in service.condition("Degraded")["message"]
    events = partial(service.cluster.list, "v1", "events", service.namespace)
    eventually(lambda: reason in {item["reason"] for item in events() if item["involvedObject"]["name"] == "chat"})
    kubelet.verdict = ready
    service.wait_ready()
    eventually(lambda: service.condition("Degraded")["status"] == "False")


def test_the_status_says_that_the_quota_is_used_up(service: ServiceUnderTest, kubelet: Kubelet) -> None:
    quota = {"metadata": {"name": "few"}, "spec": {"hard": {"pods": "1"}}}
    service.cluster.create("v1", "resourcequotas", service.namespace, quota)
    service.apply()
    eventually(lambda: service.condition("Degraded")["reason"] == "QuotaExceeded", why=service.get)
    assert "exceeded quota: few" in service.condition("Degraded")["message"]


def test_the_status_says_which_object_was_refused(service: ServiceUnderTest, kubelet: Kubelet) -> None:
    """Overrides are not looked at before the API server sees the workload."""
    service.apply(decode={"overrides": {"spec": {"restartPolicy": "Sometimes"}}})
    eventually(lambda: service.condition("Degraded")["reason"] == "ObjectRefused", why=service.get)
    assert "restartPolicy" in service.condition("Degraded")["message"]
    assert ("Deployment", "chat-gateway") in service.children()
    service.apply()
    service.wait_ready()


def changed(before: dict[tuple[str, str], Any], after: dict[tuple[str, str], Any]) -> set[str]:
    """Kind and name of what is new, gone or different; workers' workloads by their role."""
    keys = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    return {f"{kind} {short(name)}" for kind, name in keys}


def short(name: str) -> str:
    return next((role for role in ("prefill", "decode") if name.startswith(f"chat-{role}-")), name)


def difference_from(before: dict[tuple[str, str], Any], service: ServiceUnderTest) -> set[str]:
    return changed(before, versions(service.children()))


def resource_versions(service: ServiceUnderTest) -> dict[object, str]:
    item = service.get()
    assert item is not None
    found: dict[object, str] = {key: item["metadata"]["resourceVersion"] for key, item in service.children().items()}
    return {**found, "itself": item["metadata"]["resourceVersion"]}
