"""From `helm install` to a first token on a cluster of real pods on this machine, by step.

    PYTHONPATH=tests python benchmarks/first_token.py --nodes 2

Starts the cluster itself, which takes root. Images are built before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from support.devcluster import cluster as devcluster
from support.kube.client import BATON, Cluster, Item, eventually
from support.kube.person import Person

ROOT = Path(__file__).parents[1]

PARTS = 4  # pods of the quickstart
QUESTION = "What is 47 + 38?"


class Clock:
    """Seconds since the step before, printed as they become known."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()

    def step(self, what: str) -> None:
        now = time.monotonic()
        print(f"{now - self._last:7.2f} s  {what}", flush=True)
        self._last = now

    def total(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:7.2f} s  {what}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1)
    arguments = parser.parse_args()
    devcluster.build_images()
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        layout = devcluster.start(Path(folder) / "cluster", arguments.nodes)
        try:
            clock.step("cluster: control plane, nodes Ready, DNS")
            person = Person(layout.kubeconfig, layout.programs)
            with person.api() as cluster:
                _install(person, cluster)
        finally:
            devcluster.stop(layout.state)


def _install(person: Person, cluster: Cluster) -> None:
    clock = Clock()
    person.helm("install", "baton", str(ROOT / "charts/baton"), "--namespace", "baton-system", "--create-namespace")
    clock.step("chart: objects made")
    person.kubectl("rollout", "status", "deployment/baton", "--namespace", "baton-system", "--timeout=60s")
    clock.step("operator ready")
    person.kubectl("apply", "-f", str(ROOT / "examples/quickstart.yaml"))
    _until(cluster, clock, "pods scheduled", lambda pods: all(_is(pod, "PodScheduled") for pod in pods))
    _until(cluster, clock, "containers started", lambda pods: all(_started(pod) for pod in pods))
    _until(cluster, clock, "weights loaded, pods ready", lambda pods: all(_is(pod, "Ready") for pod in pods))
    eventually(lambda: _service_ready(cluster), 60.0)
    clock.step("status says Ready")
    with person.forwarded("default", "service/quickstart", 8000) as url:
        clock.step("port-forward")
        _first_token(url)
    clock.step("first token")
    clock.total("helm install to first token")


def _until(cluster: Cluster, clock: Clock, what: str, holds: Callable[[list[Item]], bool]) -> None:
    def look() -> bool:
        pods = cluster.list("v1", "pods", "default", "baton.dev/service=quickstart")
        return len(pods) == PARTS and holds(pods)

    eventually(look, 120.0)
    clock.step(what)


def _is(pod: Item, kind: str) -> bool:
    return any(one["type"] == kind and one["status"] == "True" for one in pod["status"].get("conditions", []))


def _started(pod: Item) -> bool:
    return all("running" in one["state"] for one in pod["status"].get("containerStatuses", [{"state": {}}]))


def _service_ready(cluster: Cluster) -> bool:
    item = cluster.get(BATON, "inferenceservices", "default", "quickstart")
    return _is(item, "Ready") if "status" in item else False


def _first_token(url: str) -> None:
    body = {"model": "baton-tiny", "messages": [{"role": "user", "content": QUESTION}], "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30, trust_env=False) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {") and any(
                choice["delta"].get("content") for choice in json.loads(line.removeprefix("data: "))["choices"]
            ):
                return
    raise RuntimeError(f"no token in the answer: {answer.status_code}")


if __name__ == "__main__":
    main()
