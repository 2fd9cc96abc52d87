"""Two workers of each role on two nodes, under load from a pod: things are killed, and nobody who asks notices.

The seconds until all was well again are in the summary at the end of the run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest
from cluster.conftest import SYSTEM
from cluster.nodes.conftest import PAIRS, Figures
from cluster.nodes.deployment import Deployment
from support.devcluster import faults
from support.devcluster.layout import Layout
from support.kube.client import Item, eventually

HEALED_WITHIN = 240.0
WORKERS = ("prefill", "decode")


@pytest.fixture
def own(layout: Layout | None) -> Layout:
    """The development cluster: to somebody else's such things are not done."""
    if layout is None:
        pytest.skip("needs a cluster that the tests started")
    return layout


@pytest.fixture
def spread(pairs: Deployment, own: Layout) -> Deployment:
    """The pairs, with a worker of each role and a gateway on either node, whatever an earlier fault did to them."""
    for component in (*WORKERS, "gateway"):
        while len({pod["spec"]["nodeName"] for pod in pairs.staying(component)}) < len(own.nodes):
            name = pairs.staying(component)[0]["metadata"]["name"]
            pairs.person.kubectl("delete", "pod", name, "--namespace", pairs.namespace, within=120.0)
            eventually(lambda: pairs.whole(PAIRS), HEALED_WITHIN, pause=0.5)
    return pairs


@contextlib.contextmanager
def nobody_notices(pairs: Deployment, figures: Figures, what: str, url: str = "") -> Iterator[None]:
    """Load before, during and after, until the service is whole again; not one answer fails or is wrong."""
    with pairs.load(url=url) as load:
        began = time.monotonic()
        yield
        over = time.monotonic()
        eventually(lambda: pairs.whole(PAIRS), HEALED_WITHIN, lambda: (pairs.get() or {}).get("status"), 0.2)
        figures.healed(what, began, over)
        load.wait_for(4)
    figures.note(f"{what}: {load.summary()}")
    assert load.bad() == []


@pytest.mark.parametrize("component", ["prefill", "decode", "gateway", "bootstrap"])
def test_any_pod_may_be_deleted(pairs: Deployment, figures: Figures, component: str) -> None:
    name = pairs.staying(component)[0]["metadata"]["name"]
    with nobody_notices(pairs, figures, f"delete a {component} pod"):
        pairs.person.kubectl("delete", "pod", name, "--namespace", pairs.namespace, "--wait=false")
        eventually(lambda: name not in names(pairs), 120.0, pause=0.2)


@pytest.mark.parametrize("component", WORKERS)
def test_any_worker_may_be_killed(pairs: Deployment, figures: Figures, component: str) -> None:
    """Without time to drain."""
    name = pairs.staying(component)[0]["metadata"]["name"]
    with nobody_notices(pairs, figures, f"kill a {component} pod"):
        words = ("delete", "pod", name, "--namespace", pairs.namespace, "--grace-period=0", "--force")
        pairs.person.kubectl(*words)


def names(pairs: Deployment) -> set[str]:
    return {pod["metadata"]["name"] for pod in pairs.pods()}


def test_the_operator_may_be_killed(pairs: Deployment, figures: Figures) -> None:
    label = "app.kubernetes.io/name=baton-operator"
    with nobody_notices(pairs, figures, "kill the operator"):
        words = ("--namespace", SYSTEM, "--selector", label)
        pairs.person.kubectl("delete", "pod", *words, "--grace-period=0", "--force")
        pairs.person.kubectl("rollout", "status", "deployment/baton", "--namespace", SYSTEM, "--timeout=60s")


def test_the_api_server_may_be_away(pairs: Deployment, figures: Figures, own: Layout) -> None:
    with nobody_notices(pairs, figures, "API server away for 20 s"):
        with faults.held(own, "kube-apiserver", 20.0):
            eventually(lambda: not answers(pairs), 20.0, pause=0.5)
        eventually(lambda: answers(pairs), 60.0, pause=0.5)


def answers(pairs: Deployment) -> bool:
    return pairs.person.attempt("kubectl", "get", "--raw", "/readyz").returncode == 0


@pytest.mark.parametrize("through", ["service", "near_gateway"])
def test_the_nodes_may_lose_sight_of_each_other(
    spread: Deployment, figures: Figures, own: Layout, through: str
) -> None:
    """Whose connection led to a gateway on the other side has to wait; one beside them finds workers on its side."""
    near = next(pod for pod in spread.staying("gateway") if pod["spec"]["nodeName"] == own.nodes[0].name)
    url = "" if through == "service" else f"http://{near['status']['podIP']}:8000/v1"
    with (
        nobody_notices(spread, figures, f"nothing between the nodes for 30 s, asked through the {through}", url),
        faults.cut(own, own.nodes[0], own.nodes[1], 30.0),
    ):
        pass


def test_a_worker_may_be_evicted_for_memory(spread: Deployment, figures: Figures, own: Layout) -> None:
    with nobody_notices(spread, figures, "evict for memory on node-2"):
        with faults.short_of_memory(own, own.nodes[1]):
            eventually(lambda: evicted(spread), 120.0, pause=0.2)
        figures.note(f"evicted: {', '.join(sorted(evicted(spread)))}")
        eventually(lambda: not taints(spread, "node-2"), 120.0, pause=0.5)


def test_a_node_may_throw_out_all_its_pods(spread: Deployment, figures: Figures, own: Layout) -> None:
    """Of either role half the workers, a gateway and perhaps the bootstrap server end together."""
    node = own.nodes[1].name
    with nobody_notices(spread, figures, f"{node} throws out all pods"):
        with faults.without_memory(own, own.nodes[1]):
            eventually(lambda: not on(spread, node), 120.0, lambda: on(spread, node), 0.2)
        eventually(lambda: not taints(spread, node), 120.0, pause=0.5)


def on(pairs: Deployment, node: str) -> list[str]:
    return [pod["metadata"]["name"] for pod in pairs.staying() if pod["spec"].get("nodeName") == node]


def evicted(pairs: Deployment) -> list[str]:
    """Names of workers of which only a record is left: nothing else ends a pod that does not go away."""
    found: list[str] = []
    for role in WORKERS:
        selector = f"baton.dev/service={pairs.name},app.kubernetes.io/component={role}"
        pods = pairs.cluster.list("v1", "pods", pairs.namespace, selector)
        found += [pod["metadata"]["name"] for pod in pods if pod["status"].get("phase") in ("Failed", "Succeeded")]
    return found


def taints(pairs: Deployment, name: str) -> list[Item]:
    return list(pairs.cluster.get("v1", "nodes", "", name)["spec"].get("taints", []))


def test_a_node_may_be_drained(spread: Deployment, figures: Figures, own: Layout) -> None:
    with nobody_notices(spread, figures, "drain node-2"):
        words = ("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=200s")
        spread.person.kubectl("drain", "node-2", *words, within=220.0)
        spread.person.kubectl("uncordon", "node-2")


def test_a_kubelet_may_be_away_for_a_minute(spread: Deployment, figures: Figures, own: Layout) -> None:
    with nobody_notices(spread, figures, "kubelet of node-2 away for 60 s"), faults.held(own, "kubelet-node-2", 60.0):
        eventually(lambda: not ready_node(spread, "node-2"), 60.0, pause=0.5)


def ready_node(pairs: Deployment, name: str) -> bool:
    conditions = pairs.cluster.get("v1", "nodes", "", name)["status"]["conditions"]
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
