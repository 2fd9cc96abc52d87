"""One cluster with real pods for all tests below, with the chart installed, and a service that serves a small model.

$KUBECONFIG names a cluster that is there already; $CHART_VALUES, a file of Helm values, the images of this checkout in
a registry that it can reach. Without them a development cluster is started for the run, which takes root.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cluster.conftest import ROOT, SYSTEM
from cluster.nodes.deployment import COMPONENT, Deployment
from support.devcluster import cluster as devcluster
from support.devcluster import needs
from support.devcluster.layout import Layout
from support.kube import binaries
from support.kube.client import Cluster, Item, eventually
from support.kube.person import Person

PAIRS = 7  # pods of the service below
# After those that start a cluster of their own: one service is made, changed, disturbed and removed.
_ORDER = ("test_first_token", "test_security", "test_rollout", "test_scaling", "test_faults", "test_removal")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.node)
            item.add_marker(pytest.mark.timeout(400, func_only=True))
    items.sort(key=lambda item: _ORDER.index(item.path.stem) if item.path.stem in _ORDER else -1)


@pytest.fixture(scope="session")
def theirs() -> bool:
    """Whether the cluster is somebody else's. Skips where there is none and none can be started."""
    if os.environ.get("KUBECONFIG"):
        return True
    if lacking := needs.lacking():
        pytest.skip(f"no KUBECONFIG, and for a cluster of its own this machine lacks: {'; '.join(lacking)}")
    binaries.build(binaries.find([*binaries.CONTROL_PLANE, *binaries.NODES])[1])
    return False


@pytest.fixture(scope="session")
def layout(theirs: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layout | None]:
    """The development cluster, of two nodes; None where the cluster is another one's."""
    if theirs:
        yield None
        return
    with own_cluster(tmp_path_factory.mktemp("devcluster"), nodes=2) as layout:
        yield layout


@contextlib.contextmanager
def own_cluster(state: Path, nodes: int) -> Iterator[Layout]:
    """A development cluster that ends with this process, however that does, and leaves nothing."""
    read, write = os.pipe()
    layout = devcluster.start(state, nodes, owner=read)
    os.close(read)
    try:
        yield layout
    finally:
        os.close(write)
        devcluster.stop(state)
    assert devcluster.leftovers(layout) == []


@pytest.fixture(scope="session")
def person(layout: Layout | None) -> Person:
    programs, _ = binaries.find(["kubectl", "helm"])
    return Person(layout.kubeconfig if layout else Path(os.environ["KUBECONFIG"]), programs)


@pytest.fixture(scope="session")
def cluster(person: Person) -> Iterator[Cluster]:
    with person.api() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def values(layout: Layout | None) -> Sequence[str]:
    """Flags for helm that name the images; the development cluster has them by the chart's own names."""
    file = os.environ.get("CHART_VALUES")
    return ["--values", file] if file and layout is None else []


@pytest.fixture(scope="session")
def release(person: Person, cluster: Cluster, values: Sequence[str]) -> Iterator[Sequence[str]]:
    """The chart, in a namespace that takes restricted pods alone; gives what `helm upgrade` needs."""
    cluster.create("v1", "namespaces", "", restricted(SYSTEM))
    words = ["baton", str(ROOT / "charts/baton"), "--namespace", SYSTEM, *values]
    person.helm("install", *words, "--wait", "--timeout", "120s")
    yield words
    person.helm("uninstall", "baton", "--namespace", SYSTEM, "--wait", "--ignore-not-found")
    person.kubectl("delete", "namespace", SYSTEM, "--ignore-not-found", "--wait=false")


@pytest.fixture(scope="session")
def quickstart(release: Sequence[str], person: Person, cluster: Cluster) -> Iterator[Deployment]:
    """`examples/quickstart.yaml` as it is, and a pod beside it to ask from."""
    namespace = "quickstart"
    cluster.create("v1", "namespaces", "", restricted(namespace))
    deployment = Deployment(person, cluster, namespace, "quickstart")
    person.kubectl("apply", "--namespace", namespace, "-f", str(ROOT / "examples/quickstart.yaml"))
    deployment.start_client()
    deployment.wait_ready(180.0)
    yield deployment
    deployment.delete()
    person.kubectl("delete", "namespace", namespace, "--ignore-not-found", "--wait=false")


@pytest.fixture(scope="session")
def pairs(quickstart: Deployment) -> Deployment:
    """The same service with two of everything that clients depend on, on different nodes where there are two."""
    model = {"uri": "file://models/baton-tiny", "servedName": "baton-tiny"}
    # With a request, since a kubelet that is short of memory does not even look at pods without one.
    worker = {"replicas": 2, "resources": {"requests": {"memory": "256Mi"}}}
    roles = {role: {**worker, "placement": {"affinity": apart(role)}} for role in ("prefill", "decode")}
    quickstart.apply(model=model, gateway={"replicas": 2}, **roles)
    eventually(lambda: quickstart.whole(PAIRS), 300.0, lambda: (quickstart.get() or {}).get("status"), 0.5)
    return quickstart


def apart(component: str) -> Item:
    labels = {"matchLabels": {"baton.dev/service": "quickstart", COMPONENT: component}}
    term = {"labelSelector": labels, "topologyKey": "kubernetes.io/hostname"}
    preferred = [{"weight": 100, "podAffinityTerm": term}]
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}


class Figures:
    """Seconds that things took, for the end of the run."""

    def __init__(self, config: pytest.Config) -> None:
        self._lines = config.stash.setdefault(_FIGURES, [])

    def add(self, what: str, seconds: float) -> None:
        self._lines.append(f"{seconds:7.1f} s  {what}")

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.add(what, time.monotonic() - began)

    def healed(self, what: str, since: float, over: float) -> None:
        """A fault that began and was over at these times, and of which nothing is left now."""
        now = time.monotonic()
        self._lines.append(
            f"{now - since:7.1f} s  {what}, until all is whole again; {now - over:.1f} s after it was over"
        )

    def note(self, line: str) -> None:
        self._lines.append(f"           {line}")


_FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def figures(pytestconfig: pytest.Config) -> Figures:
    return Figures(pytestconfig)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if lines := config.stash.get(_FIGURES, []):
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.line(line)


def restricted(namespace: str) -> dict[str, object]:
    """A namespace that refuses pods which do not keep the restricted standard."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}
    return {"metadata": {"name": namespace, "labels": labels}}
