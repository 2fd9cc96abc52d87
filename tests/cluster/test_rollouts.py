"""New weights on real workers behind pods, under load, with everything failing in turn: the operator drives.

One service lives through all tests, which change it from whatever it serves to the other weights.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster.services import ServiceUnderTest
from support.baton_processes import BATON_TINY, BATON_TINY_V2
from support.kube.client import Cluster, Item, eventually
from support.kube.kubelet import Kubelet, ready
from support.kube.node import Node
from support.kube.operator_process import OperatorProcess
from support.kube.streams import BOOTSTRAP_PORT, Streams

NAMESPACE = "rolling"
FLAGS = ["--max-total-tokens", "16384", "--enable-cache-report", "--log-level", "warning"]
PATIENCE = 150.0  # seconds; bounds a failing test


class Rolling(ServiceUnderTest):
    """The service, the node that its pods run on, and the operator."""

    def __init__(self, cluster: Cluster, node: Node, operator: OperatorProcess, folder: Path) -> None:
        super().__init__(cluster, NAMESPACE)
        self.node, self.operator, self.folder = node, operator, folder
        self.model = BATON_TINY
        self.digests: dict[Path, str] = {}
        self.prefill, self.decode = 1, 1
        self.flip = False

    @property
    def other(self) -> Path:
        return BATON_TINY_V2 if self.model == BATON_TINY else BATON_TINY

    def serve(self, model: Path, strategy: str, flags: list[str] | None = None, **rollout: Any) -> None:
        """What a person does who wants other weights."""
        self.model = model
        role = {"extraArgs": [*FLAGS, *(flags or [])]}
        self.apply(
            model={"uri": f"file://{model}", "servedName": "tiny"},
            prefill={"replicas": self.prefill, **role},
            decode={"replicas": self.decode, **role},
            transfer={"backend": "mooncake", "protocol": "tcp"},
            scaling={"roleFlip": self.flip},
            rollout={"strategy": strategy, "progressSeconds": 300, "drainSeconds": 20, **rollout},
            security={"networkPolicies": False},
        )

    def roles(self) -> tuple[int, int, int]:
        """Ready workers of either role, and how many of them were started for the other."""
        status = (self.get() or {}).get("status") or {}
        return status["prefill"]["ready"], status["decode"]["ready"], len(status.get("flips", []))

    @property
    def rollout(self) -> Item:
        return dict(((self.get() or {}).get("status") or {}).get("rollout") or {})

    @property
    def phase(self) -> str:
        """Of the manifest that is there now."""
        item = self.get() or {}
        status = item.get("status") or {}
        current = status.get("observedGeneration") == item["metadata"]["generation"]
        return str(self.rollout.get("phase", "")) if current else ""

    def wait(self, *phases: str) -> str:
        """Return once the rollout is in one of `phases`, which one."""
        eventually(lambda: self.phase in phases, PATIENCE, self.why)
        return self.phase

    def wait_served(self) -> None:
        """All pods serve the model of the manifest, and none else is left."""
        self.wait("Done")
        self.wait_settled(PATIENCE)

    def why(self) -> str:
        logs = {one.name: self.node.log(one.name)[-600:] for one in self.node.containers.values() if not one.ready}
        events = [f"{one['reason']}: {one['message']}" for one in self.events()[-12:]]
        return json.dumps([self.rollout, logs, events, self.operator.log[-2000:]], indent=1)

    def events(self) -> list[Item]:
        found = self.cluster.list("v1", "events", NAMESPACE)
        mine = [one for one in found if one["involvedObject"]["name"] == self.name]
        return sorted(mine, key=lambda one: str(one["metadata"]["creationTimestamp"]))

    def weights(self) -> set[str]:
        status = (self.get() or {}).get("status") or {}
        return {str(one["digest"]) for one in status.get("weights", [])}


@pytest.fixture(scope="module")
def rolling(
    cluster: Cluster, running_kubelet: Kubelet, rights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rolling]:
    folder = tmp_path_factory.mktemp("rolling")
    running_kubelet.verdict = elsewhere
    cluster.create("v1", "namespaces", "", {"metadata": {"name": NAMESPACE}})
    with Node(cluster, NAMESPACE, folder) as node:
        names = {"HTTP_PROXY": node.proxy.url, "http_proxy": node.proxy.url, "NO_PROXY": "", "no_proxy": ""}
        with OperatorProcess(folder, rights, "--resync-seconds", "5", environment=names) as operator:
            service = Rolling(cluster, node, operator, folder)
            service.serve(BATON_TINY, "Surge")
            service.wait_served()
            service.digests[BATON_TINY] = eventually(service.weights, PATIENCE).pop()
            yield service
            service.delete()
            eventually(lambda: service.get() is None, PATIENCE)
            assert operator.stop() == 0
            assert "Traceback" not in operator.log, operator.log
        assert not node.broken
    cluster.delete("v1", "namespaces", "", NAMESPACE)
    running_kubelet.verdict = ready


def elsewhere(pod: Item) -> Item | None:
    return None if pod["metadata"]["namespace"] == NAMESPACE else ready(pod)


@contextmanager
def load(rolling: Rolling) -> Iterator[Streams]:
    """Streams from before the change until after it; whatever happened in between, clients saw nothing of it."""
    bootstrap = f"{rolling.node.resolve(f'chat-bootstrap-0.{NAMESPACE}.svc.cluster.local')}:{BOOTSTRAP_PORT}"
    with Streams(rolling.node, bootstrap) as streams:
        streams.wait(6)
        yield streams
        now = time.monotonic()
        streams.wait(12)
        found = streams.digests(now)
    assert len(found) == 1, found
    rolling.digests.setdefault(rolling.model, next(iter(found)))
    assert found == {rolling.digests[rolling.model]}
    assert streams.complaints(rolling.digests.get(BATON_TINY_V2, "")) == {}


@pytest.mark.parametrize("strategy", ["Surge", "InPlace"])
def test_new_weights_under_load(rolling: Rolling, strategy: str) -> None:
    pods = set(rolling.node.containers)
    with load(rolling):
        rolling.serve(rolling.other, strategy)
        rolling.wait_served()
    stay = 4 if strategy == "InPlace" else 2  # the gateway and the bootstrap server; others drain before they end
    eventually(lambda: len(pods & set(rolling.node.containers)) == stay, PATIENCE, rolling.why)
    assert {"RolloutMoving", "RolloutDone"} <= {one["reason"] for one in rolling.events()}


@pytest.mark.parametrize("strategy", ["InPlace", "Surge"])
def test_the_operator_is_killed_at_any_step(rolling: Rolling, strategy: str) -> None:
    """At each step that its status tells of, until there are no more."""
    seen: set[str] = set()
    with load(rolling):
        rolling.serve(rolling.other, strategy)
        end = time.monotonic() + PATIENCE
        while rolling.phase != "Done":
            assert time.monotonic() < end, rolling.why()
            step = json.dumps([rolling.rollout.get(name) for name in ("phase", "moving", "message")])
            if step not in seen and len(seen) < 8 and rolling.phase:
                seen.add(step)
                rolling.operator.crash()
                rolling.operator.start()
            time.sleep(0.05)
        rolling.wait_served()
    assert len(seen) >= 2


def test_a_worker_dies_during_the_swap(rolling: Rolling) -> None:
    """Its container is started again, asks what it is to serve, and serves that."""
    with load(rolling):
        rolling.serve(rolling.other, "InPlace")
        moving = eventually(lambda: list(rolling.rollout.get("moving", [])), PATIENCE, rolling.why)[0]
        rolling.node.containers[moving].signal(signal.SIGKILL)
        rolling.wait_served()
        assert rolling.node.containers[moving].starts == 2


def half_uploaded(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def of_another_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["GptOssForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))


BROKEN: dict[str, tuple[str, Callable[[Path], None]]] = {
    "half_uploaded_in_place": ("InPlace", half_uploaded),
    "half_uploaded_surge": ("Surge", half_uploaded),
    "architecture_in_place": ("InPlace", of_another_architecture),
    "architecture_surge": ("Surge", of_another_architecture),
}


@pytest.mark.parametrize(("strategy", "damage"), BROKEN.values(), ids=list(BROKEN))
def test_weights_that_cannot_be_served_are_rolled_back(
    rolling: Rolling, tmp_path: Path, strategy: str, damage: Callable[[Path], None]
) -> None:
    before, broken = rolling.model, tmp_path / "broken"
    shutil.copytree(rolling.other, broken)
    damage(broken)
    with load(rolling):
        rolling.serve(broken, strategy)
        assert rolling.wait("Failed", "Done") == "Failed"
        assert rolling.condition("Degraded")["reason"] == "RolledBack"
        assert rolling.condition("Stalled")["status"] == "True"
        assert rolling.rollout["reason"] in rolling.condition("Degraded")["message"]
        rolling.model = before
    rolling.serve(before, strategy)
    rolling.wait_served()


def test_no_room_for_a_surge(rolling: Rolling) -> None:
    """New pods are refused; after rollout.progressSeconds everything stays as it was."""
    before = rolling.model
    quota = {"metadata": {"name": "few"}, "spec": {"hard": {"pods": "4"}}}
    rolling.cluster.create("v1", "resourcequotas", NAMESPACE, quota)
    with load(rolling):
        rolling.serve(rolling.other, "Surge", progressSeconds=30)
        eventually(lambda: rolling.condition("Degraded")["reason"] == "QuotaExceeded", PATIENCE, rolling.why)
        assert rolling.wait("Failed", "Done") == "Failed"
        assert "not done within 30 s" in rolling.rollout["reason"]
        rolling.model = before
    rolling.cluster.delete("v1", "resourcequotas", NAMESPACE, "few")
    rolling.serve(before, "Surge")
    rolling.wait_served()


def test_a_gateway_is_replaced_meanwhile(rolling: Rolling) -> None:
    """The one that leaves ends what it has begun."""
    with load(rolling):
        rolling.serve(rolling.other, "InPlace")
        eventually(lambda: rolling.phase not in ("", "Done"), PATIENCE, rolling.why)
        rolling.cluster.delete("v1", "pods", NAMESPACE, rolling.node.of("gateway")[0].name)
        rolling.wait_served()


def test_the_bootstrap_server_is_killed_meanwhile(rolling: Rolling) -> None:
    """It comes back knowing nothing: workers and operator tell it."""
    with load(rolling):
        rolling.serve(rolling.other, "InPlace")
        eventually(lambda: rolling.phase not in ("", "Done"), PATIENCE, rolling.why)
        rolling.node.of("bootstrap")[0].signal(signal.SIGKILL)
        rolling.wait_served()


@pytest.mark.parametrize("strategy", ["InPlace", "Surge"])
def test_it_is_taken_back_meanwhile(rolling: Rolling, strategy: str) -> None:
    before = rolling.model
    with load(rolling):
        rolling.serve(rolling.other, strategy)
        eventually(lambda: rolling.phase == "Moving", PATIENCE, rolling.why)
        rolling.serve(before, strategy)
        rolling.wait_served()


def test_another_change_comes_meanwhile(rolling: Rolling) -> None:
    """Other flags as well: the first change ends as it stands, and new workers take over."""
    with load(rolling):
        rolling.serve(rolling.other, "InPlace")
        eventually(lambda: rolling.phase == "Moving", PATIENCE, rolling.why)
        rolling.serve(rolling.model, "InPlace", ["--max-running-requests", "40"])
        rolling.wait_served()
    flags = [rolling.node.containers[one.name].spec["args"] for one in rolling.node.of("decode")]
    assert flags
    assert all("--max-running-requests" in words for words in flags)


@pytest.mark.parametrize("strategy", ["InPlace", "Surge"])
def test_it_is_scaled_meanwhile(rolling: Rolling, strategy: str) -> None:
    with load(rolling):
        rolling.decode = 1
        rolling.serve(rolling.other, strategy)
        eventually(lambda: rolling.phase not in ("", "Done"), PATIENCE, rolling.why)
        rolling.decode = 2
        rolling.serve(rolling.model, strategy)
        rolling.wait_served()
        assert len(rolling.node.of("decode")) == 2
        rolling.decode = 1
        rolling.serve(rolling.model, strategy)
        eventually(lambda: len(rolling.node.of("decode")) == 1, PATIENCE, rolling.why)


def test_workers_change_between_roles(rolling: Rolling) -> None:
    """Replicas move from one role to the other: the same pods go on, and Kubernetes has nothing to do."""
    rolling.flip, rolling.decode = True, 2
    rolling.serve(rolling.model, "Surge")
    rolling.wait_served()
    eventually(lambda: rolling.roles() == (1, 2, 0), PATIENCE, rolling.why)
    pods = set(rolling.node.containers)
    with load(rolling):
        for prefill, decode, flips in ((2, 1, 1), (1, 2, 0)):
            rolling.prefill, rolling.decode = prefill, decode
            rolling.serve(rolling.model, "Surge")
            eventually(lambda: rolling.roles() == (prefill, decode, flips), PATIENCE, rolling.why)  # noqa: B023
            rolling.wait_served()
            assert set(rolling.node.containers) == pods
    rolling.flip, rolling.decode = False, 1
    rolling.serve(rolling.model, "Surge")
    eventually(lambda: len(rolling.node.of("decode")) == 1, PATIENCE, rolling.why)
