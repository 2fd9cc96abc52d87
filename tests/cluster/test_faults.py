"""The operator killed, replaced, doubled, cut off and left deaf: every service still becomes what its manifest says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from cluster.conftest import SYSTEM
from cluster.services import ServiceUnderTest
from support.kube.client import BATON, Cluster, eventually
from support.kube.control_plane import ControlPlane
from support.kube.deaf_proxy import DeafProxy
from support.kube.kubelet import Kubelet
from support.kube.operator_process import OperatorProcess

OUTAGE = 30.0  # seconds without an API server


@pytest.fixture
def service(cluster: Cluster, namespace: str, kubelet: Kubelet) -> ServiceUnderTest:
    return ServiceUnderTest(cluster, namespace)


@pytest.fixture
def mortal(rights: Path, tmp_path: Path) -> Iterator[OperatorProcess]:
    """An operator of the test's own."""
    with OperatorProcess(tmp_path, rights, "--resync-seconds", "5") as process:
        yield process
        process.stop()


def test_it_is_killed_between_any_two_steps_and_goes_on(service: ServiceUnderTest, mortal: OperatorProcess) -> None:
    service.apply()
    for count in (1, 5, 10):
        eventually(lambda count=count: len(service.children()) >= count)  # type: ignore[misc]
        mortal.crash()
        mortal.start()
    service.wait_settled()
    service.apply(model={"uri": "hf://owner/other"})
    for count in (16, 20):
        eventually(lambda count=count: len(service.children()) >= count or service.is_ready())  # type: ignore[misc]
        mortal.crash()
        mortal.start()
    service.wait_settled()
    assert len(service.children()) == 15
    mortal.crash()
    service.delete()
    mortal.start()
    eventually(lambda: service.get() is None and service.leftovers() == [], 90.0, service.leftovers)


def test_another_release_restarts_no_worker(
    service: ServiceUnderTest, rights: Path, tmp_path: Path, mortal: OperatorProcess
) -> None:
    """It comes with other images, which only the gateway and the bootstrap server take on."""
    service.apply()
    service.wait_settled()
    before = {key: item["metadata"] for key, item in service.children().items() if key[0] == "Deployment"}
    assert mortal.stop() == 0
    images = ["--worker-image", "worker:2", "--gateway-image", "gateway:2"]
    (tmp_path / "next").mkdir()
    with OperatorProcess(tmp_path / "next", rights, "--resync-seconds", "2", *images) as later:
        eventually(lambda: service.children()["Deployment", "chat-gateway"]["metadata"]["generation"] > 1)
        service.wait_settled()
        rounds = later.rounds()
        eventually(lambda: later.rounds() > rounds)
        for key, item in service.children().items():
            if key[0] == "Deployment" and ("prefill" in key[1] or "decode" in key[1]):
                assert item["metadata"]["generation"] == before[key]["generation"]
        later.stop()
    mortal.start()


def test_of_two_operators_one_works_and_the_other_takes_over(
    service: ServiceUnderTest, rights: Path, tmp_path: Path, mortal: OperatorProcess
) -> None:
    eventually(lambda: mortal.healthy() and mortal.metric("baton_operator_leading") == 1)
    (tmp_path / "second").mkdir()
    name = {"POD_NAME": "operator-1"}
    with OperatorProcess(tmp_path / "second", rights, "--resync-seconds", "5", environment=name) as second:
        eventually(second.healthy)
        service.apply()
        service.wait_ready()
        assert second.metric("baton_operator_leading") == 0
        assert second.rounds() == 0
        assert mortal.stop() == 0
        eventually(lambda: second.metric("baton_operator_leading") == 1)
        service.apply(gateway={"port": 81})
        eventually(lambda: service.children()["Service", "chat"]["spec"]["ports"][0]["port"] == 81)
        second.stop()
    mortal.start()


def test_an_operator_whose_lease_was_taken_ends(cluster: Cluster, mortal: OperatorProcess) -> None:
    eventually(lambda: mortal.healthy() and mortal.metric("baton_operator_leading") == 1)
    other = {"spec": {"holderIdentity": "somebody", "leaseDurationSeconds": 3600}}
    cluster.patch("coordination.k8s.io/v1", "leases", SYSTEM, "baton", other)
    assert mortal.process.wait(30) == 1
    cluster.delete("coordination.k8s.io/v1", "leases", SYSTEM, "baton")
    mortal.start()
    eventually(lambda: mortal.healthy() and mortal.metric("baton_operator_leading") == 1)


def test_the_api_server_is_away_for_a_while(
    plane: ControlPlane, service: ServiceUnderTest, mortal: OperatorProcess
) -> None:
    """The same process goes on; nothing was written while the Lease could not be renewed."""
    service.apply()
    service.wait_settled()
    plane.stop_api_server()
    time.sleep(OUTAGE)
    assert mortal.metric("baton_operator_leading") == 0
    plane.start_api_server()
    for kind in ("inferenceservices", "workerscalers"):
        eventually(partial(service.cluster.serves, BATON, kind))
    service.apply(gateway={"replicas": 2})
    eventually(lambda: service.children()["Deployment", "chat-gateway"]["spec"]["replicas"] == 2, 60.0)
    service.wait_settled(60.0)
    assert mortal.process.poll() is None
    assert mortal.metric("baton_operator_leading") == 1


def test_watches_fall_silent(plane: ControlPlane, service: ServiceUnderTest, tmp_path: Path) -> None:
    with DeafProxy(plane) as proxy:
        token = plane.admin().token(SYSTEM, "baton")
        kubeconfig = plane.kubeconfig("deaf", token, proxy.url)
        with OperatorProcess(tmp_path, kubeconfig, "--resync-seconds", "1") as deaf:
            eventually(lambda: proxy.watches > 2)
            service.apply()
            service.wait_settled(60.0)
            service.apply(prefill={"replicas": 2})
            service.wait_settled(60.0)
            service.delete()
            eventually(lambda: service.get() is None and service.leftovers() == [], 60.0, service.leftovers)
            assert deaf.stop() == 0
