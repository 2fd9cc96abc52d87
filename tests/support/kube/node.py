"""What stands in for a node where pods are to do real work: runs the containers of pods as processes here.

Every pod has a loopback address of its own, so that ports are those of the pod. Names of Services lead to such an
address too; for programs that resolve names themselves there is an HTTP proxy.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from support.baton_processes import bound_to_parent
from support.kube.client import Cluster, Item
from support.kube.name_proxy import NameProxy

PERIOD = 0.1
PAUSE = 0.5  # seconds before a container that ended is started again, twice as long each time
_NAME = re.compile(r"([a-z0-9-]+)\.([a-z0-9-]+)\.svc\.cluster\.local")
_ADDRESSES = itertools.count(2)


def new_address() -> str:
    number = next(_ADDRESSES)
    return f"127.77.{number // 250}.{number % 250 + 1}"


@dataclass
class Container:
    """The container of one pod, through all its starts."""

    pod: Item
    address: str
    log: Path
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    again_at: float = 0.0
    ready: bool = False
    term_at: float | None = None
    told: bool = False  # to end
    said: str = ""

    @property
    def name(self) -> str:
        return str(self.pod["metadata"]["name"])

    @property
    def component(self) -> str:
        return str(self.pod["metadata"]["labels"].get("app.kubernetes.io/component", ""))

    @property
    def spec(self) -> Item:
        return dict(self.pod["spec"]["containers"][0])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all of its processes."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass
class Node:
    """Runs within the context; leaving it ends all processes. `broken` hears of faults of the node itself."""

    cluster: Cluster
    namespace: str
    folder: Path
    containers: dict[str, Container] = field(default_factory=dict)
    broken: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._names: dict[str, str] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="node", daemon=True)
        self.proxy = NameProxy(self.resolve)

    def __enter__(self) -> Node:
        self.proxy.start()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopped.set()
        self._thread.join()
        for container in self.containers.values():
            container.signal(signal.SIGKILL)
        self.proxy.stop()

    def resolve(self, host: str) -> str:
        """The address of a Service, by its DNS name; any other host is left as it is."""
        match = _NAME.fullmatch(host)
        return self._names.setdefault(match.group(1), new_address()) if match else host

    def of(self, component: str) -> list[Container]:
        """The containers of a role's pods that are not on their way out, by name."""
        found = [one for one in list(self.containers.values()) if one.component == component and one.term_at is None]
        return sorted(found, key=lambda one: one.name)

    def log(self, name: str) -> str:
        return self.containers[name].log.read_text(errors="replace")

    def _run(self) -> None:
        while not self._stopped.wait(PERIOD):
            try:
                pods = self.cluster.list("v1", "pods", self.namespace)
                self._look(pods)
            except (httpx.TransportError, httpx.HTTPStatusError):
                continue
            except Exception as error:  # a border: the test looks at `broken`
                self.broken.append(error)
                raise

    def _look(self, pods: list[Item]) -> None:
        there = {pod["metadata"]["name"] for pod in pods}
        for name in set(self.containers) - there:
            self.containers.pop(name).signal(signal.SIGKILL)
        for pod in pods:
            self._look_at(pod)

    def _look_at(self, pod: Item) -> None:
        name = pod["metadata"]["name"]
        if name not in self.containers:
            if "deletionTimestamp" in pod["metadata"]:
                self._remove(name)
                return
            self._bind(pod)
            self.containers[name] = Container(pod, self._address_of(pod), self.folder / f"{name}.log")
        container = self.containers[name]
        container.pod = pod
        if "deletionTimestamp" in pod["metadata"]:
            self._end(container)
        elif not container.alive():
            self._restart(container)
        container.ready = container.alive() and container.term_at is None and self._probe(container)
        self._report(container)

    def _bind(self, pod: Item) -> None:
        """Only the pods of a node end gracefully."""
        place = pod["metadata"]["namespace"], pod["metadata"]["name"]
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": place[1]},
            "target": {"kind": "Node", "name": "here"},
        }
        if not pod["spec"].get("nodeName"):
            self.cluster.create("v1", "pods", place[0], binding, "binding")

    def _address_of(self, pod: Item) -> str:
        labels = pod["metadata"]["labels"]
        if "baton.dev/replica" in labels:  # one pod at a time, behind a Service of its own
            return self.resolve(
                f"{labels['baton.dev/service']}-bootstrap-{labels['baton.dev/replica']}.{self.namespace}.svc.cluster.local"
            )
        return new_address()

    def _restart(self, container: Container) -> None:
        now = time.monotonic()
        if container.process is not None and container.again_at == 0.0:
            container.signal(signal.SIGKILL)
            container.said = container.log.read_text(errors="replace")[-2000:]
            container.again_at = now + min(PAUSE * 2.0 ** (container.starts - 1), 8.0)
        if now < container.again_at:
            return
        container.again_at = 0.0
        container.starts += 1
        words = [self._word(word, container.address) for word in container.spec["args"]]
        with container.log.open("wb") as log:
            container.process = subprocess.Popen(
                bound_to_parent([sys.executable, "-m", "baton_serving.cli.main", *words]),
                env=self._environment(container),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _word(self, word: str, address: str) -> str:
        word = word.replace("$(POD_IP)", address).replace("0.0.0.0", address)
        return _NAME.sub(lambda match: self.resolve(match.group()), word)

    def _environment(self, container: Container) -> Mapping[str, str]:
        own: dict[str, str] = {}
        fields = {"metadata.name": container.name, "status.podIP": container.address}
        for entry in container.spec.get("env", []):
            source = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
            own[entry["name"]] = fields[source] if source else entry.get("value", "")
        home = {name: os.environ[name] for name in ("HOME",) if name in os.environ}
        return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **own, **home}

    def _end(self, container: Container) -> None:
        """preStop, SIGTERM, and at last the pod goes."""
        now = time.monotonic()
        sleep = container.spec.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        if container.term_at is None:
            container.term_at = now + sleep
        if not container.alive() or now > container.term_at + container.pod["spec"]["terminationGracePeriodSeconds"]:
            container.signal(signal.SIGKILL)
            self._remove(container.name)
        elif now >= container.term_at and container.process is not None and not container.told:
            container.told = True
            container.process.terminate()

    def _remove(self, name: str) -> None:
        path = self.cluster.path("v1", "pods", self.namespace, name)
        self.cluster.http.delete(path, params={"gracePeriodSeconds": "0"})

    def _probe(self, container: Container) -> bool:
        probe = container.spec.get("readinessProbe", {})
        port = next(one["containerPort"] for one in container.spec["ports"] if one["name"] == "http")
        try:
            if "httpGet" in probe:
                path = probe["httpGet"]["path"]
                url = f"http://{container.address}:{port}{path}"
                return httpx.get(url, timeout=2.0, trust_env=False).status_code == 200
            with socket.create_connection((container.address, port), timeout=2.0):
                return True
        except (OSError, httpx.TransportError):
            return False

    def _report(self, container: Container) -> None:
        wanted = _status(container)
        if _relevant(container.pod.get("status", {})) != _relevant(wanted):
            self.cluster.patch("v1", "pods", self.namespace, container.name, {"status": wanted}, "status")


def _status(container: Container) -> Item:
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    truth = {True: "True", False: "False"}
    kinds = {"PodScheduled": True, "Initialized": True, "ContainersReady": container.ready, "Ready": container.ready}
    conditions = [{"type": kind, "status": truth[holds], "lastTransitionTime": now} for kind, holds in kinds.items()]
    state: Item = {"running": {"startedAt": now}}
    if not container.alive():
        state = {"waiting": {"reason": "CrashLoopBackOff"}}
    status: Item = {
        "name": container.spec["name"],
        "image": container.spec["image"],
        "imageID": "",
        "ready": container.ready,
        "restartCount": max(0, container.starts - 1),
        "state": state,
    }
    if container.said:
        status["lastState"] = {"terminated": {"exitCode": 1, "message": container.said[-1000:]}}
    return {
        "phase": "Running",
        "podIP": container.address,
        "podIPs": [{"ip": container.address}],
        "conditions": conditions,
        "containerStatuses": [status],
    }


def _relevant(status: Mapping[str, Any]) -> object:
    """Without times."""
    conditions = sorted((one["type"], one["status"]) for one in status.get("conditions", []))
    containers = [
        (one["ready"], one["restartCount"], next(iter(one.get("state", {})), ""))
        for one in status.get("containerStatuses", [])
    ]
    return status.get("podIP"), conditions, containers
