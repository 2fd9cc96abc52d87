"""What stands in for the kubelet: says of every pod that it runs and is ready, unless a test asks otherwise."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import httpx
from support.kube.client import Cluster, Item

Verdict = Callable[[Item], Item | None]  # the status that a pod is to get, None for none


# What earlier verdicts may have said.
GONE: Item = {"reason": None, "initContainerStatuses": None}


def ready(pod: Item) -> Item | None:
    """A pod that runs from the start."""
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    kinds = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    conditions = [{"type": kind, "status": "True", "lastTransitionTime": now} for kind in kinds]
    return {"phase": "Running", "podIP": "127.0.0.1", "conditions": conditions, "containerStatuses": [], **GONE}


class Kubelet:
    """A thread that looks at all pods; `verdict` may be replaced at any time and is asked until a pod is ready."""

    def __init__(self, cluster: Cluster, period: float = 0.1) -> None:
        self.verdict: Verdict = ready
        self._period = period
        self._cluster = cluster
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kubelet", daemon=True)

    def __enter__(self) -> Kubelet:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._period):
            try:
                for pod in self._cluster.list("v1", "pods"):
                    self._look_at(pod)
            except (httpx.TransportError, httpx.HTTPStatusError):
                continue  # the API server is being restarted, or the pod is gone

    def _look_at(self, pod: Item) -> None:
        meta, status = pod["metadata"], self.verdict(pod)
        if status is None or _says(pod["status"], status):
            return
        self._cluster.patch("v1", "pods", meta["namespace"], meta["name"], {"status": status}, "status")


def _says(before: Any, wanted: Any) -> bool:
    """Whether `before` holds all of `wanted`, times aside."""
    if isinstance(wanted, dict):
        return isinstance(before, dict) and all(
            key == "lastTransitionTime" or _says(before.get(key), value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        before = before if isinstance(before, list) else []
        return len(before) == len(wanted) and all(_says(*pair) for pair in zip(before, wanted, strict=True))
    return bool(before == wanted)
