"""Edit one field: the right children change, and no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from support.fake_cluster import APIS, START, FakeCluster, service_of

from baton_operator.planner import Observed, Settings, plan

NEW_PREFILL, NEW_DECODE = "new prefill", "new decode"
BOTH = {NEW_PREFILL, NEW_DECODE}
BOOTSTRAP = "Deployment/chat-bootstrap-0"
GATEWAY = "Deployment/chat-gateway"
PODS = {BOOTSTRAP, GATEWAY}


def spec(**parts: str) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in {"model": "{uri: 'hf://a/b'}", **parts}.items()) + "}"


def children(text: str) -> dict[str, Any]:
    """By kind and name; workloads of roles without their revision in the key."""
    made = plan(service_of(text), Observed(), START, Settings(apis=APIS))
    found: dict[str, Any] = {}
    for item in (*made.apply, *made.create):
        metadata = item["metadata"]
        assert isinstance(metadata, Mapping)
        found[f"{item['kind']}/{metadata['name']}"] = item
    return found


def difference(before: str, after: str) -> set[str]:
    old, new = children(before), children(after)
    names = {name for name in {*old, *new} if old.get(name) != new.get(name)}
    changed = {name for name in names if "-prefill-" not in name and "-decode-" not in name}
    for role in ("prefill", "decode"):
        if any(f"-{role}-" in name and name not in old for name in names):
            changed.add(f"new {role}")
        elif any(f"-{role}-" in name for name in names):
            changed.add(f"same {role}")
    return changed


@pytest.mark.parametrize(
    ("parts", "changed"),
    [
        ({"model": "{uri: 'hf://a/c'}"}, BOTH),
        ({"model": "{uri: 'hf://a/b', revision: abc}"}, BOTH),
        ({"model": "{uri: 'hf://a/b', servedName: x}"}, BOTH),
        ({"model": "{uri: 'hf://a/b', token: {name: s, key: k}}"}, BOTH),
        ({"model": "{uri: 'hf://a/b', cache: {claim: c}}"}, BOTH),
        ({"model": "{uri: 'pvc://c/p'}"}, {*BOTH, "NetworkPolicy/chat-workers"}),
        ({"prefill": "{replicas: 2}"}, {"same prefill"}),
        ({"decode": "{replicas: 2}"}, {"same decode"}),
        ({"decode": "{resources: {limits: {cpu: 2}}}"}, {NEW_DECODE}),
        ({"prefill": "{placement: {nodeSelector: {a: b}}}"}, {NEW_PREFILL}),
        ({"prefill": "{placement: {tolerations: [{key: a, value: b}]}}"}, {NEW_PREFILL}),
        ({"prefill": "{placement: {runtimeClass: nvidia, priorityClass: high, scheduler: s}}"}, {NEW_PREFILL}),
        ({"decode": "{placement: {labels: {kueue.x-k8s.io/queue-name: q}}}"}, {NEW_DECODE}),
        ({"decode": "{shmSize: 1Gi}"}, {NEW_DECODE}),
        ({"decode": "{extraArgs: [--page-size, '32']}"}, BOTH),
        ({"decode": "{env: [{name: A, value: b}]}"}, BOTH),
        ({"decode": "{image: other}"}, BOTH),
        ({"decode": "{overrides: {spec: {hostNetwork: true}}}"}, BOTH),
        ({"decode": "{parallelism: {tensor: 2}}"}, BOTH),
        ({"decode": "{autoscaling: {maxReplicas: 4}}"}, {"WorkerScaler/chat-decode"}),
        ({"transfer": "{backend: nixl}"}, BOTH),
        ({"transfer": "{protocol: rdma, resource: rdma/hca, devices: [mlx5_0]}"}, BOTH),
        ({"bootstrap": "{leaseSeconds: 5}"}, {BOOTSTRAP}),
        ({"bootstrap": "{resources: {limits: {cpu: 1}}}"}, {BOOTSTRAP}),
        ({"bootstrap": "{replicas: 2}"}, {*BOTH, GATEWAY, "Deployment/chat-bootstrap-1", "Service/chat-bootstrap-1"}),
        ({"gateway": "{replicas: 3}"}, {GATEWAY}),
        ({"gateway": "{policy: round_robin}"}, {GATEWAY}),
        ({"gateway": "{attempts: 2, workerWaitSeconds: 9}"}, {GATEWAY}),
        ({"gateway": "{port: 80}"}, {"Service/chat"}),
        ({"gateway": "{service: {type: LoadBalancer, annotations: {a: b}}}"}, {"Service/chat"}),
        ({"gateway": "{route: {parents: [{name: g}]}}"}, {"HTTPRoute/chat"}),
        ({"gateway": "{ingress: {host: h, tlsSecret: t}}"}, {"Ingress/chat"}),
        ({"rollout": "{progressSeconds: 99}"}, set()),
        ({"rollout": "{drainSeconds: 99}"}, {*BOTH, GATEWAY}),
        ({"metrics": "{podMonitor: true}"}, {"PodMonitor/chat"}),
        (
            {"metrics": "{namespaces: {a: b}}"},
            {"NetworkPolicy/chat-workers", "NetworkPolicy/chat-bootstrap"},
        ),
        ({"security": "{token: {name: s, key: k}}"}, {*BOTH, *PODS}),
        ({"security": "{ca: {name: c, key: k}}"}, BOTH),
        ({"security": "{proxy: {url: 'http://p:3128'}}"}, {*BOTH, "NetworkPolicy/chat-workers"}),
        (
            {"security": "{networkPolicies: false}"},
            {f"NetworkPolicy/chat-{name}" for name in ("workers", "gateway", "bootstrap")},
        ),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_the_right_children_change(parts: dict[str, str], changed: set[str]) -> None:
    assert difference(spec(), spec(**parts)) == changed


def worker(text: str, role: str = "decode") -> dict[str, Any]:
    (item,) = [item for name, item in children(text).items() if f"Deployment/chat-{role}" in name]
    pod: dict[str, Any] = item["spec"]["template"]["spec"]
    return pod


def test_a_worker_pod_keeps_the_restricted_standard() -> None:
    pod = worker(spec())
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in (*pod["containers"], *pod["initContainers"]):
        context = container["securityContext"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert (context["readOnlyRootFilesystem"], context["allowPrivilegeEscalation"]) == (True, False)
    assert not any("hostPath" in volume for volume in pod["volumes"])


def test_rdma_pods_ask_for_the_device_and_may_pin_memory() -> None:
    (container,) = worker(spec(transfer="{protocol: rdma, resource: rdma/hca}"))["containers"]
    assert container["resources"]["limits"] == {"rdma/hca": "1"}
    assert container["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]


@pytest.mark.parametrize(
    ("uri", "flag", "volume"),
    [
        ("hf://a/b", "a/b", "emptyDir"),
        ("pvc://claim/some/path", "/models/some/path", "persistentVolumeClaim"),
        ("oci://images/m:1", "/models", "image"),
        ("file:///opt/m", "/opt/m", None),
        ("file://models/m", "/opt/baton/share/models/m", None),
    ],
)
def test_the_model_is_found_where_the_uri_says(uri: str, flag: str, volume: str | None) -> None:
    pod = worker(spec(model=f"{{uri: '{uri}'}}"))
    (container,) = pod["containers"]
    assert container["args"][:3] == ["serve", "--model-path", flag]
    volumes = [item for item in pod["volumes"] if item["name"] == "model"]
    assert [volume in item for item in volumes] == ([True] if volume else [])
    assert ("initContainers" in pod) == uri.startswith("hf")


def test_decode_alone_serves_whole() -> None:
    made = children(spec(prefill="{replicas: 0}"))
    assert not any("-prefill-" in name for name in made)
    (container,) = worker(spec(prefill="{replicas: 0}"))["containers"]
    assert container["args"][container["args"].index("--disaggregation-mode") + 1] == "null"


def test_a_worker_over_several_nodes_is_a_leader_worker_set() -> None:
    (item,) = [
        item
        for name, item in children(spec(decode="{parallelism: {tensor: 2, nodes: 2}}", prefill="{replicas: 0}")).items()
        if "LeaderWorkerSet" in name
    ]
    assert item["spec"]["leaderWorkerTemplate"]["size"] == 2


def test_overrides_are_laid_over_by_name_but_our_labels_stand() -> None:
    overrides = (
        "{metadata: {labels: {baton.dev/service: x, mine: y}}, "
        "spec: {containers: [{name: worker, tty: true}, {name: extra, image: i}]}}"
    )
    (item,) = [i for n, i in children(spec(decode=f"{{overrides: {overrides}}}")).items() if "ment/chat-decode" in n]
    template = item["spec"]["template"]
    assert [c["name"] for c in template["spec"]["containers"]] == ["worker", "extra"]
    assert template["spec"]["containers"][0]["tty"] is True
    assert template["spec"]["containers"][0]["image"]
    assert template["metadata"]["labels"]["baton.dev/service"] == "chat"
    assert template["metadata"]["labels"]["mine"] == "y"


def test_another_release_of_the_operator_restarts_no_worker() -> None:
    cluster = FakeCluster(spec())
    cluster.settle()
    before = cluster.replicas()
    cluster.settings = Settings(apis=APIS, worker_image="baton-worker:9", gateway_image="baton-gateway:9")
    cluster.settle()
    assert cluster.replicas() == before
    workers = {name: item for name, item in cluster.of_kind("Deployment").items() if name in before}
    images = {item["spec"]["template"]["spec"]["containers"][0]["image"] for item in workers.values()}
    assert images == {"baton-worker:0.1.0"}
