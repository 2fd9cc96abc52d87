"""Workers over two nodes, which the real LeaderWorkerSet controller makes of what the operator applies."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from cluster.services import ServiceUnderTest
from support.kube import binaries
from support.kube.client import Cluster, Item, eventually, labels_of
from support.kube.control_plane import ControlPlane
from support.kube.kubelet import Kubelet, ready
from support.kube.leader_worker_set import LeaderWorkerSetController
from support.kube.operator_process import OperatorProcess

SPANNING = {"tensor": 2, "nodes": 2}
SECRET = {"mutualTls": True}  # by which the pods of a worker know each other
LWS = "leaderworkerset.x-k8s.io/v1"


@pytest.fixture(scope="module")
def controller(installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Before the operator: it watches the kinds that it finds at its start."""
    folder = tmp_path_factory.mktemp("lws")
    with LeaderWorkerSetController(installed, binaries.find()[0], folder):
        eventually(partial(installed.admin().serves, LWS, "leaderworkersets"))
        yield


@pytest.fixture
def service(
    cluster: Cluster, namespace: str, kubelet: Kubelet, controller: None, operator: OperatorProcess
) -> ServiceUnderTest:
    return ServiceUnderTest(cluster, namespace)


def pods(service: ServiceUnderTest, role: str) -> list[Item]:
    mark = f"baton.dev/service=chat,app.kubernetes.io/component={role}"
    return service.cluster.list("v1", "pods", service.namespace, mark)


def index(pod: Item) -> str:
    return labels_of(pod)["leaderworkerset.sigs.k8s.io/worker-index"]


def variables(pod: Item) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in pod["spec"]["containers"][0]["env"]}


def test_every_group_has_a_leader_whose_address_its_pods_know(service: ServiceUnderTest) -> None:
    service.apply(security=SECRET, prefill={"parallelism": SPANNING}, decode={"parallelism": SPANNING, "replicas": 2})
    service.wait_settled(90.0)
    assert sorted(map(index, pods(service, "prefill"))) == ["0", "1"]
    assert sorted(map(index, pods(service, "decode"))) == ["0", "0", "1", "1"]
    leaders = {variables(pod)["LWS_LEADER_ADDRESS"] for pod in pods(service, "decode")}
    assert len(leaders) == 2
    for pod in pods(service, "decode"):
        words = pod["spec"]["containers"][0]["args"]
        assert words[words.index("--node-rank") + 1] == "$(LWS_WORKER_INDEX)"
        assert variables(pod)["LWS_WORKER_INDEX"] == index(pod)
    status = (service.get() or {})["status"]
    assert (status["readyPairs"], status["decode"]["ready"]) == (1, 2)


def test_a_worker_is_ready_with_all_its_pods(service: ServiceUnderTest, kubelet: Kubelet) -> None:
    kubelet.verdict = lambda pod: None if index_or_none(pod) == "1" else ready(pod)
    service.apply(security=SECRET, prefill={"parallelism": SPANNING}, decode={"parallelism": {"tensor": 2}})
    eventually(lambda: len(pods(service, "prefill")) == 2, 60.0)
    eventually(lambda: ((service.get() or {})["status"].get("decode") or {}).get("ready") == 1, 60.0, service.get)
    assert not service.is_ready()
    kubelet.verdict = ready
    service.wait_settled(90.0)


def test_groups_come_and_go_with_replicas_and_nothing_is_left(service: ServiceUnderTest) -> None:
    service.apply(security=SECRET, prefill={"parallelism": SPANNING}, decode={"parallelism": {"tensor": 2}})
    service.wait_settled(90.0)
    for count in (3, 1):
        service.apply(
            security=SECRET, prefill={"parallelism": SPANNING, "replicas": count}, decode={"parallelism": {"tensor": 2}}
        )
        eventually(lambda count=count: len(pods(service, "prefill")) == 2 * count, 90.0)  # type: ignore[misc]
        service.wait_settled(90.0)
    service.delete()
    eventually(lambda: service.get() is None, 90.0)
    eventually(lambda: service.leftovers() == [], 60.0, service.leftovers)
    assert service.cluster.list(LWS, "leaderworkersets", service.namespace) == []


def index_or_none(pod: Item) -> str | None:
    return labels_of(pod).get("leaderworkerset.sigs.k8s.io/worker-index")
