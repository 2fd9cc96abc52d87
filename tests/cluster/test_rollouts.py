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
PATIENCE = 100.0


class Rolling(ServiceUnderTest):
    """The service, the node that its pods run on, and the operator."""

    def __init__(self, cluster: Cluster, node: Node, operator: OperatorProcess, folder: Path) -> None:
        super().__init__(cluster, NAMESPACE)
        self.node, self.operator, self.folder = node, operator, folder
        self.model = BATON_TINY
        self.digests: dict[Path, str] = {}
        self.prefill, self.decode = 1, 1

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
            rollout={"strategy": strategy, "progressSeconds": 90, "drainSeconds": 20, **rollout},
            security={"networkPolicies": False},
        )

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


@pytest.fixture(autouse=True)
def _pods_are_the_nodes(kubelet: Kubelet) -> None:
    kubelet.verdict = elsewhere


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
    stayed = pods & set(rolling.node.containers)
    assert len(stayed) == (4 if strategy == "InPlace" else 2)
    assert {"RolloutMoving", "RolloutDone"} <= {one["reason"] for one in rolling.events()}
