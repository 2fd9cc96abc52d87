"""Status, events, obstacles, scaling, pausing and the end of a service."""

from __future__ import annotations

from typing import Any

import pytest
from support.fake_cluster import FakeCluster

from baton_operator.api.status import DownloadStatus, Status
from baton_operator.planner import FINALIZER, Observed, Plan, Ref, Service, Settings, WorkerReport, plan

A = "{model: {uri: 'hf://a/a'}}"
B = "{model: {uri: 'hf://a/b'}}"


def conditions(cluster: FakeCluster) -> dict[str, str]:
    return {item["type"]: item["status"] for item in cluster.service["status"]["conditions"]}


def test_conditions_go_from_progressing_to_ready() -> None:
    cluster = FakeCluster(A)
    first = cluster.round()
    assert conditions(cluster) == {
        "Available": "False",
        "Ready": "False",
        "Progressing": "True",
        "Degraded": "False",
        "Stalled": "False",
    }
    assert [event.reason for event in first.events] == ["RollingOut"]
    cluster.settle()
    assert conditions(cluster)["Ready"] == conditions(cluster)["Available"] == "True"
    assert conditions(cluster)["Progressing"] == "False"
    status = cluster.service["status"]
    assert status["readyPairs"] == 1
    assert status["url"] == "http://chat.prod.svc.cluster.local:8000/v1"
    assert status["observedGeneration"] == cluster.service["metadata"]["generation"]


def test_a_service_stays_available_while_another_version_comes_up() -> None:
    cluster = FakeCluster(A)
    cluster.settle()
    since = cluster.condition("Available")["lastTransitionTime"]
    cluster.edit(B)
    cluster.pass_time(10)
    cluster.round()
    cluster.round()
    assert conditions(cluster)["Available"] == "True"
    assert cluster.condition("Available")["lastTransitionTime"] == since
    assert conditions(cluster)["Ready"] == "False"
    assert len(cluster.replicas()) == 4


def test_workers_that_do_not_come_up_in_time_degrade_the_service() -> None:
    cluster = FakeCluster(A)
    cluster.round()
    made = cluster.round()
    assert made.requeue_after == 1800
    cluster.pass_time(1800)
    cluster.round()
    assert cluster.condition("Degraded")["reason"] == "ProgressDeadlineExceeded"


def pod(**status: Any) -> dict[str, Any]:
    labels = {"baton.dev/service": "chat", "app.kubernetes.io/component": "decode"}
    metadata = {"name": "p", "labels": labels}
    return {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": {"nodeName": "n-1"}, "status": status}


# What the node controller leaves of a pod's conditions.
SILENT_NODE = {"PodScheduled": "True", "ContainersReady": "True", "Ready": "False"}


def waiting(name: str, state_reason: str, note: str = "", **last: Any) -> dict[str, Any]:
    state = {"waiting": {"reason": state_reason, "message": note}}
    return {"name": name, "image": "img:1", "state": state, "lastState": {"terminated": last}}


@pytest.mark.parametrize(
    ("status", "reason", "sentence"),
    [
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3"}]},
            "Unschedulable",
            "a decode pod fits no node: 0/3",
        ),
        (
            {"containerStatuses": [waiting("worker", "ImagePullBackOff", "not found")]},
            "ImageMissing",
            "image img:1 of the decode pods cannot be pulled: not found",
        ),
        (
            {"initContainerStatuses": [waiting("fetch-model", "CrashLoopBackOff", exitCode=1, message="no model")]},
            "ModelMissing",
            "the model cannot be fetched for decode pods: no model",
        ),
        (
            {"containerStatuses": [waiting("worker", "CrashLoopBackOff", exitCode=137, reason="OOMKilled")]},
            "Crashing",
            "container worker of a decode pod keeps ending: exit status 137 (OOMKilled)",
        ),
        (
            {"conditions": [{"type": kind, "status": said} for kind, said in SILENT_NODE.items()]},
            "NodeLost",
            "node n-1 does not answer; its decode pod will be replaced",
        ),
    ],
)
def test_the_status_says_in_a_sentence_what_is_in_the_way(status: dict[str, Any], reason: str, sentence: str) -> None:
    cluster = FakeCluster(A)
    cluster.pods = [pod(**status)]
    made = cluster.round()
    found = cluster.condition("Degraded")
    assert (found["status"], found["reason"], found["message"]) == ("True", reason, sentence)
    assert any(event.warning and event.reason == reason for event in made.events)


def test_what_is_left_of_an_evicted_pod_is_in_nobodys_way() -> None:
    """Kubernetes keeps it until somebody looks at it."""
    cluster = FakeCluster(A)
    cluster.settle()
    evicted = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "TerminationByKubelet",
        "message": "low on memory",
    }
    cluster.pods = [pod(conditions=[evicted])]
    cluster.round()
    assert cluster.condition("Degraded")["reason"] == "NodeLost"
    cluster.pods = [pod(phase="Failed", reason="Evicted", conditions=[evicted])]
    cluster.round()
    assert conditions(cluster)["Degraded"] == "False"
    assert conditions(cluster)["Ready"] == "True"


def test_an_exhausted_quota_is_named() -> None:
    cluster = FakeCluster(A)
    cluster.round()
    (name, *_) = cluster.replicas()
    message = 'pods "x" is forbidden: exceeded quota: gpus'
    condition = {"type": "ReplicaFailure", "status": "True", "message": message}
    cluster.of_kind("Deployment")[name]["status"] = {"conditions": [condition]}
    cluster.round()
    assert cluster.condition("Degraded")["reason"] == "QuotaExceeded"


@pytest.mark.parametrize(
    ("spec", "reason", "word"),
    [
        ("{model: {uri: 'hf://a/c'}, transfer: {protocol: nvlink}}", "InvalidSpec", "spec.transfer.protocol: NVLink"),
        (
            "{model: {uri: 'hf://a/b'}, decode: {parallelism: {tensor: 2, nodes: 2}}, security: {mutualTls: true}}",
            "LeaderWorkerSetMissing",
            "decode workers span nodes",
        ),
    ],
)
def test_what_cannot_be_done_stalls_and_touches_nothing(spec: str, reason: str, word: str) -> None:
    cluster = FakeCluster(A, Settings())
    cluster.settle()
    cluster.edit(spec)
    made = cluster.round()
    assert (made.apply, made.delete) == ((), ())
    assert cluster.condition("Stalled")["reason"] == reason
    assert word in cluster.condition("Stalled")["message"]
    assert cluster.condition("Available")["status"] == "True"


def test_without_the_right_to_secrets_certificates_stall_and_a_token_degrades() -> None:
    cluster = FakeCluster("{model: {uri: 'hf://a/a'}, security: {mutualTls: true}}")
    service, observed = Service.from_object(cluster.service), Observed(secrets=None)
    made = plan(service, observed, cluster.now, cluster.settings)
    assert (made.apply, made.delete) == ((), ())
    assert said(made, "Stalled") == ("True", "SecretsForbidden")
    observed = Observed(token_trouble="there is no Secret t, which security.token names")
    made = plan(Service.from_object(FakeCluster(A).service), observed, cluster.now, cluster.settings)
    assert made.apply
    assert said(made, "Degraded") == ("True", "TokenUnreadable")


def said(made: Plan, kind: str) -> tuple[str, str]:
    assert made.status is not None
    (found,) = [item for item in made.status.conditions if item.type == kind]
    return found.status, found.reason


def test_weights_are_those_that_workers_report() -> None:
    cluster = FakeCluster(A)
    cluster.workers = [WorkerReport("p", "prefill", "ready", "w1"), WorkerReport("d", "decode", "ready", "w1")]
    cluster.round()
    assert cluster.service["status"]["weights"] == [{"digest": "w1", "workers": 2}]


def status_of(spec: str, **seen: Any) -> Status:
    cluster = FakeCluster(spec)
    made = plan(Service.from_object(cluster.service), Observed(**seen), cluster.now, cluster.settings)
    assert made.status is not None
    return made.status


def test_the_status_says_how_far_the_model_is_fetched() -> None:
    pods = [WorkerReport(f"p-{number}", "both", "starting", "", done=number, total=4) for number in (1, 2)]
    unknown = WorkerReport("p-3", "both", "starting", "")
    found = status_of(A, workers=[], fetching=[*pods, unknown])
    assert found.download == DownloadStatus(pods=3, percent=37)
    assert status_of(A, workers=[]).download is None


def test_links_are_told_once_and_again_when_they_differ() -> None:
    cluster = FakeCluster(A)

    def after(rate: float) -> list[float]:
        links = {"p": rate, "gone": 1e9}
        cluster.workers = [
            WorkerReport("d", "decode", "ready", "w", links=links),
            WorkerReport("p", "prefill", "ready", "w"),
        ]
        cluster.round()
        found = cluster.service["status"].get("links", [])
        assert all((link["prefill"], link["decode"]) == ("p", "d") for link in found)
        return [link["gigabytesPerSecond"] for link in found]

    assert after(2.0456e9) == [2.05]
    assert after(2.4e9) == [2.05]
    assert after(1.0e9) == [1.0]
    cluster.workers = None
    cluster.round()
    assert cluster.service["status"]["links"][0]["gigabytesPerSecond"] == 1.0


def test_a_paused_rollout_keeps_the_workers_but_follows_replicas() -> None:
    cluster = FakeCluster(A)
    cluster.settle()
    before = cluster.replicas()
    cluster.edit("{model: {uri: 'hf://a/b'}, decode: {replicas: 3}, rollout: {paused: true}}")
    cluster.settle()
    assert set(cluster.replicas()) == set(before)
    assert sorted(cluster.replicas().values()) == [1, 3]


def test_an_autoscaler_drives_the_scaler_and_never_the_manifest() -> None:
    cluster = FakeCluster(
        "{model: {uri: 'hf://a/a'}, decode: {replicas: 2, autoscaling: {driver: external, maxReplicas: 4}}}"
    )
    cluster.settle()
    spec = dict(cluster.service["spec"])
    scaler = cluster.objects[Ref("baton.dev/v1alpha1", "WorkerScaler", "chat-decode")]
    assert scaler["status"]["replicas"] == 2
    assert scaler["status"]["selector"] == "baton.dev/service=chat,app.kubernetes.io/component=decode"
    for asked, got in ((3, 3), (9, 4), (0, 1)):
        scaler["spec"]["replicas"] = asked
        cluster.settle()
        assert [n for name, n in cluster.replicas().items() if "decode" in name] == [got]
    assert cluster.service["spec"] == spec


def test_own_autoscaling_writes_the_scaler_and_never_the_manifest() -> None:
    scaling = "autoscaling: {minReplicas: 0, maxReplicas: 4}"
    text = f"{{model: {{uri: 'hf://a/a'}}, prefill: {{{scaling}}}, decode: {{replicas: 2, {scaling}}}"
    cluster = FakeCluster(text + ", gateway: {workerWaitSeconds: 60}}")
    cluster.settle()
    spec = dict(cluster.service["spec"])
    scaler = Ref("baton.dev/v1alpha1", "WorkerScaler", "chat-decode")
    assert cluster.objects[scaler]["spec"]["replicas"] == 2
    for asked, got in (
        ({"prefill": 3, "decode": 4}, {"prefill": 3, "decode": 4}),
        ({"prefill": 9, "decode": 0}, {"prefill": 4, "decode": 1}),
        ({}, {"prefill": 4, "decode": 1}),  # nobody could be asked: what stands stays
        ({"prefill": 0, "decode": 0}, {"prefill": 0, "decode": 0}),
    ):
        cluster.scaled = asked
        cluster.settle()
        assert {name.split("-")[1]: n for name, n in cluster.replicas().items()} == got
        assert cluster.objects[scaler]["spec"]["replicas"] == got["decode"]
    assert cluster.service["spec"] == spec


def test_the_end_drains_gateway_then_workers_then_lets_go() -> None:
    cluster = FakeCluster(A)
    cluster.settle()
    cluster.delete()
    first = cluster.round()
    assert [ref.name for ref in first.delete] == ["chat-gateway"]
    assert FINALIZER in cluster.service["metadata"]["finalizers"]
    cluster.round()
    assert set(cluster.replicas().values()) == {0}
    assert cluster.plan().finalizers is None
    for ref in cluster.workloads():
        cluster.advance(ref)
    assert cluster.plan().finalizers == ()


def test_the_end_comes_after_a_bound_whatever_still_runs() -> None:
    cluster = FakeCluster(A)
    cluster.settle()
    cluster.delete()
    assert cluster.plan().requeue_after == 180
    cluster.pass_time(180)
    assert cluster.plan().finalizers == ()


def test_children_of_another_service_are_left_alone() -> None:
    cluster = FakeCluster(A)
    cluster.settle()
    (item,) = [dict(item) for name, item in cluster.of_kind("Deployment").items() if name == "chat-gateway"]
    stranger = {**item, "metadata": {**item["metadata"], "name": "x", "ownerReferences": [{"uid": "u2"}]}}
    cluster.objects[Ref("apps/v1", "Deployment", "x")] = stranger
    assert cluster.plan().delete == ()


def test_old_workers_that_are_away_for_a_moment_are_not_given_up() -> None:
    cluster = FakeCluster(A)
    cluster.settle()
    cluster.round()  # a round that sees them ready writes that down
    old = set(cluster.replicas())
    for name in old:
        cluster.of_kind("Deployment")[name]["status"]["readyReplicas"] = 0
    cluster.edit(B)
    cluster.round()
    cluster.round()
    assert {name: count for name, count in cluster.replicas().items() if name in old} == dict.fromkeys(old, 1)
