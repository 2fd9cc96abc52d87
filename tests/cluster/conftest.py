"""One control plane for all tests below, with the chart installed and an operator of its ServiceAccount's rights."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.kube import binaries
from support.kube.client import BATON, Cluster, eventually
from support.kube.control_plane import ControlPlane
from support.kube.kubelet import Kubelet, ready
from support.kube.operator_process import OperatorProcess

ROOT = Path(__file__).parents[2]
SYSTEM = "baton-system"
RESYNC_SECONDS = "5"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They share one control plane, so one process runs them; building what it consists of is not on their clock."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.xdist_group("cluster"))
            item.add_marker(pytest.mark.timeout(180, func_only=True))


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    _, missing = binaries.find()
    if missing and shutil.which("go"):
        binaries.build(missing)
    programs, missing = binaries.find()
    if missing or not shutil.which("openssl"):
        wanted = [*missing, *([] if shutil.which("openssl") else ["openssl"])]
        pytest.skip(f"missing: {', '.join(wanted)}; set KUBE_BIN_DIR, or install Go to build them")
    with ControlPlane(tmp_path_factory.mktemp("plane"), programs) as plane:
        yield plane


@pytest.fixture(scope="session")
def installed(plane: ControlPlane) -> ControlPlane:
    """With the chart's release `baton`, whose own pods never run: the tests run the operator themselves."""
    words = ["install", "baton", str(ROOT / "charts/baton"), "--namespace", SYSTEM, "--create-namespace"]
    words += ["--set", "secrets=true"]
    done = plane.run("helm", *words)
    assert done.returncode == 0, done.stderr
    plane.adopt_definitions()
    return plane


@pytest.fixture(scope="session")
def cluster(installed: ControlPlane) -> Cluster:
    return installed.admin()


@pytest.fixture(scope="session")
def running_kubelet(cluster: Cluster) -> Iterator[Kubelet]:
    with Kubelet(cluster) as kubelet:
        yield kubelet


@pytest.fixture
def kubelet(running_kubelet: Kubelet) -> Iterator[Kubelet]:
    """Every pod is ready at once, unless the test says otherwise."""
    yield running_kubelet
    running_kubelet.verdict = ready


@pytest.fixture(scope="session")
def rights(installed: ControlPlane) -> Path:
    """A kubeconfig with the rights of the chart's ServiceAccount."""
    return installed.kubeconfig("operator", installed.admin().token(SYSTEM, "baton"))


@pytest.fixture(scope="module")
def operator(
    rights: Path, running_kubelet: Kubelet, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """One operator for a module's tests."""
    folder = tmp_path_factory.mktemp("operator")
    with OperatorProcess(folder, rights, "--resync-seconds", RESYNC_SECONDS, "--log-level", "debug") as process:
        eventually(lambda: process.healthy() and process.metric("baton_operator_leading") == 1)
        yield process
        assert process.stop() == 0, process.log
    assert "Traceback" not in process.log, process.log


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own."""
    name = f"test-{secrets.token_hex(3)}"
    cluster.create("v1", "namespaces", "", {"metadata": {"name": name}})
    yield name
    # Kubernetes forgets to do this where it once found the API server without our kinds.
    for item in cluster.list(BATON, "inferenceservices", name):
        place = BATON, "inferenceservices", name, item["metadata"]["name"]
        cluster.patch(*place, {"metadata": {"finalizers": None}})
        if cluster.find(*place):
            cluster.delete(*place)
    cluster.delete("v1", "namespaces", "", name)
