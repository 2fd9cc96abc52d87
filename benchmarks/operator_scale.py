"""Many InferenceServices at once: how long until all are up, at what cost, and does the cluster come to rest?

    PYTHONPATH=tests python benchmarks/operator_scale.py --services 200 --rest 600

Starts etcd, kube-apiserver and kube-controller-manager on loopback, installs the chart, and runs one operator with the
chart's rights; a thread stands in for the kubelet. Prints, beside the least that server-side apply could do, the
requests of the operator per service, its memory and CPU time; then waits `--rest` seconds and counts the objects whose
resourceVersion has changed meanwhile, Leases aside. Exit status 1 when any has.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table
from support.kube import binaries
from support.kube.client import BATON, Cluster, eventually
from support.kube.control_plane import ControlPlane
from support.kube.kubelet import Kubelet
from support.kube.operator_process import OperatorProcess

CHART = Path(__file__).parents[1] / "charts" / "baton"
SYSTEM, PLACE = "baton-system", "scale"
PATIENCE = 900.0
# Children of a plain service, its finalizer, and a status when it begins and when it is up.
FLOOR = 15 + 1 + 2
KINDS = (
    *((BATON, "inferenceservices"), ("v1", "services"), ("v1", "serviceaccounts"), ("v1", "pods")),
    *(("apps/v1", "deployments"), ("apps/v1", "replicasets"), ("apps/v1", "controllerrevisions")),
    *(("policy/v1", "poddisruptionbudgets"), ("networking.k8s.io/v1", "networkpolicies"), ("v1", "events")),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--services", type=int, default=200, help="how many services are applied at once")
    parser.add_argument("--rest", type=float, default=600.0, help="seconds for which nothing may change")
    parser.add_argument("--resync-seconds", type=float, default=60.0, help="the operator's flag of that name")
    options = parser.parse_args()
    programs, missing = binaries.find()
    if missing:
        print(f"missing: {', '.join(missing)}; run make test-cluster once", file=sys.stderr)
        return 2
    with (
        tempfile.TemporaryDirectory() as folder,
        ControlPlane(Path(folder), programs) as plane,
        Kubelet(plane.admin(), period=2.0),
    ):
        cluster = installed(plane)
        rights = plane.kubeconfig("operator", cluster.token(SYSTEM, "baton"))
        with OperatorProcess(Path(folder), rights, "--resync-seconds", str(options.resync_seconds)) as operator:
            eventually(operator.healthy)
            return measure(cluster, operator, options.services, options.rest)


def installed(plane: ControlPlane) -> Cluster:
    done = plane.run("helm", "install", "baton", str(CHART), "--namespace", SYSTEM, "--create-namespace")
    if done.returncode:
        raise SystemExit(done.stderr)
    plane.adopt_definitions()
    cluster = plane.admin()
    cluster.create("v1", "namespaces", "", {"metadata": {"name": PLACE}})
    return cluster


def measure(cluster: Cluster, operator: OperatorProcess, services: int, rest: float) -> int:
    process = psutil.Process(operator.process.pid)
    empty = process.memory_info().rss
    began = time.monotonic()
    for number in range(services):
        item = {"apiVersion": BATON, "kind": "InferenceService", "metadata": {"name": f"chat-{number}"}}
        cluster.create(BATON, "inferenceservices", PLACE, {**item, "spec": {"model": {"uri": "hf://owner/model"}}})
    applied = time.monotonic() - began
    eventually(lambda: count(cluster, "observedGeneration", 1) == services, PATIENCE)
    made = time.monotonic() - began
    eventually(lambda: count(cluster, "readyPairs", 1) == services and at_rest(cluster), PATIENCE)
    up, calls, cpu = time.monotonic() - began, requests(operator), process.cpu_times().user + process.cpu_times().system
    table = Table(title=f"{services} services", title_justify="left")
    for heading in ("figure", "value", "least"):
        table.add_column(heading)
    table.add_row("all applied by the client", f"{applied:.1f} s", "")
    table.add_row("all children made", f"{made:.1f} s", f"{applied:.1f} s")
    table.add_row("all ready and settled", f"{up:.1f} s", "")
    table.add_row("writes per service", f"{calls['write'] / services:.1f}", str(FLOOR))
    table.add_row("reads per service", f"{calls['read'] / services:.1f}", "")
    memory = process.memory_info().rss
    table.add_row("operator's memory", f"{memory / 2**20:.0f} MiB", f"{empty / 2**20:.0f} MiB without services")
    table.add_row("operator's CPU time", f"{cpu:.1f} s", "")
    time.sleep(5)  # for the last events to be written
    before, calls = versions(cluster), requests(operator)
    time.sleep(rest)
    changed = {key for key, version in versions(cluster).items() if before.get(key) != version}
    later = requests(operator)
    reads = (later["read"] - calls["read"]) / rest if rest else 0.0
    table.add_row(f"objects changed in {rest:.0f} s of rest", str(len(changed)), "0")
    table.add_row("requests per second at rest", f"{reads:.1f}", "")
    Console().print(table)
    for kind, name in sorted(changed)[:20]:
        print(f"changed: {kind} {name}")
    return int(bool(changed))


def count(cluster: Cluster, field: str, least: int) -> int:
    found = cluster.list(BATON, "inferenceservices", PLACE)
    return sum(item.get("status", {}).get(field, 0) >= least for item in found)


def at_rest(cluster: Cluster) -> bool:
    found = cluster.list(BATON, "inferenceservices", PLACE)
    conditions = [{c["type"]: c["status"] for c in item["status"]["conditions"]} for item in found]
    return all(each["Ready"] == "True" and each["Progressing"] == "False" for each in conditions)


def versions(cluster: Cluster) -> dict[tuple[str, str], str]:
    return {
        (plural, item["metadata"]["name"]): item["metadata"]["resourceVersion"]
        for version, plural in KINDS
        for item in cluster.list(version, plural, PLACE)
    }


def requests(operator: OperatorProcess) -> dict[str, float]:
    """The operator's requests so far, the Lease's aside."""
    text = httpx.get(f"http://127.0.0.1:{operator.port}/metrics", trust_env=False).text
    found = {"read": 0.0, "write": 0.0}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "baton_operator_api_calls_total" and sample.labels["resource"] != "leases":
                found["read" if sample.labels["verb"] in ("get", "list") else "write"] += sample.value
    return found


if __name__ == "__main__":
    sys.exit(main())
