"""Security as the cluster applies it: what pods may be, and what their identities may do."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import yaml
from cluster.conftest import ROOT, SYSTEM
from cluster.nodes.conftest import restricted
from cluster.nodes.deployment import ASKER, Deployment, small_pod
from support.devcluster.layout import Layout
from support.kube.client import Item, eventually

# What every authenticated identity may do: ask what it may do, and look around the API's root.
EVERYBODYS = {"selfsubjectreviews.authentication.k8s.io", "selfsubjectaccessreviews.authorization.k8s.io"}
EVERYBODYS |= {"selfsubjectrulesreviews.authorization.k8s.io"}


def test_the_namespaces_refuse_pods_that_are_not_restricted(quickstart: Deployment) -> None:
    """So what runs in them is."""
    for namespace in (quickstart.namespace, SYSTEM):
        done = quickstart.person.attempt("kubectl", "run", "loose", "--image=none", "--namespace", namespace)
        assert done.returncode != 0
        assert 'violates PodSecurity "restricted' in done.stderr


def test_no_pod_of_a_service_has_a_token(quickstart: Deployment) -> None:
    for pod in quickstart.pods():
        assert all("projected" not in volume for volume in pod["spec"]["volumes"])
        name = pod["metadata"]["name"]
        found = quickstart.person.attempt(
            *("kubectl", "exec", "--namespace", quickstart.namespace, name, "--"),
            *("ls", "/var/run/secrets/kubernetes.io/serviceaccount"),
        )
        assert found.returncode != 0


def test_no_pod_of_a_service_can_write_to_its_root_or_become_somebody_else(quickstart: Deployment) -> None:
    script = "touch /opt/baton/x; grep -E '^(Uid|CapEff|NoNewPrivs|Seccomp):' /proc/1/status"
    for pod in quickstart.pods():
        words = ("sh", "-c", f"{script}; true")
        printed = quickstart.person.inside(quickstart.namespace, pod["metadata"]["name"], *words)
        status = dict(line.split(":", 1) for line in printed.splitlines())
        assert status["Uid"].split() == ["65532"] * 4
        assert int(status["CapEff"], 16) == 0
        assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
        assert quickstart.person.attempt(
            "kubectl", "exec", "-n", quickstart.namespace, pod["metadata"]["name"], "--", "test", "-e", "/opt/baton/x"
        ).returncode


def test_the_identity_of_a_services_pods_may_do_nothing(quickstart: Deployment) -> None:
    rules = rules_of(quickstart, quickstart.namespace, "quickstart-pods")
    assert {name for rule in rules for name in named(rule)} <= EVERYBODYS


@pytest.mark.parametrize(
    "forbidden", ["get secrets", "create pods", "create clusterrolebindings", "delete namespaces", "get pods/log"]
)
def test_the_operators_identity_may_do_no_more_than_the_chart_says(quickstart: Deployment, forbidden: str) -> None:
    account = f"--as=system:serviceaccount:{SYSTEM}:baton"
    done = quickstart.person.attempt("kubectl", "auth", "can-i", *forbidden.split(), "--all-namespaces", account)
    assert done.stdout.strip() == "no"


def test_the_operators_rules_are_the_charts(quickstart: Deployment) -> None:
    chart = yaml.safe_load((ROOT / "charts/baton/files/rules.yaml").read_text())
    wanted = {(name, verb) for rule in chart for name in named(rule) for verb in rule["verbs"]}
    rules = rules_of(quickstart, quickstart.namespace, "baton", SYSTEM)
    found = {(name, verb) for rule in rules for name in named(rule) for verb in rule["verbs"]}
    assert {right for right in found if right[0] not in EVERYBODYS} == wanted


CONNECT = """
import concurrent.futures, json, socket, sys

def reaches(place):
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 3).close()
    except TimeoutError:
        return False
    except ConnectionRefusedError:
        pass  # it came there and back
    return True

with concurrent.futures.ThreadPoolExecutor() as pool:
    print(json.dumps(list(pool.map(reaches, sys.argv[1:]))))
"""
STRANGER = "stranger"
API = "10.96.0.1:443"


@pytest.fixture
def stranger(quickstart: Deployment) -> Iterator[str]:
    """A namespace with a pod of its name."""
    person = quickstart.person
    quickstart.cluster.create("v1", "namespaces", "", restricted(STRANGER))
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": STRANGER, "namespace": STRANGER}}
    pod = small_pod(STRANGER, quickstart.image("gateway"), ["sleep", "infinity"])
    person.apply(config, {**pod, "metadata": {"name": STRANGER, "namespace": STRANGER}})
    words = ("--namespace", STRANGER, "--for=condition=Ready", "--timeout=60s")
    person.kubectl("wait", f"pod/{STRANGER}", *words, within=70.0)
    yield STRANGER
    person.kubectl("delete", "namespace", STRANGER, "--wait=false")


def test_the_network_policies_close_what_nobody_needs(
    quickstart: Deployment, stranger: str, layout: Layout | None
) -> None:
    """Everything is open without them; with them what the service lives on is, and nothing else that is tried."""
    if layout is None:
        pytest.skip("nobody knows whether another one's cluster keeps network policies")
    prefill, decode, gateway, bootstrap = (
        quickstart.pods(component)[0] for component in ("prefill", "decode", "gateway", "bootstrap")
    )
    worker_api, worker_other = at(decode, 30000), at(decode, 20000)
    register, listing, endpoint = at(bootstrap, 8998), at(bootstrap, 8999), at(gateway, 8000)
    opened = {
        (quickstart.namespace, ASKER): [endpoint, worker_api, listing],  # its namespace may read metrics
        (stranger, STRANGER): [endpoint],
        (quickstart.namespace, name(prefill)): [worker_api, worker_other, register],
        (quickstart.namespace, name(gateway)): [worker_api, register],
    }
    closed = {
        (quickstart.namespace, ASKER): [register, worker_other],
        (stranger, STRANGER): [worker_api, worker_other, register, listing],
        (quickstart.namespace, name(prefill)): [endpoint, listing, API],
        (quickstart.namespace, name(gateway)): [worker_other, listing, API],
        (quickstart.namespace, name(bootstrap)): [worker_api, endpoint, API],
    }
    for source, places in opened.items():
        assert reached(quickstart, source, places) == [True] * len(places), (source, places)
    for source, places in closed.items():
        assert reached(quickstart, source, places) == [False] * len(places), (source, places)
    quickstart.apply(**QUICKSTART, security={"networkPolicies": False})
    eventually(lambda: all(all(reached(quickstart, *one)) for one in closed.items()), 60.0, pause=1.0)
    quickstart.apply(**QUICKSTART)
    eventually(lambda: not any(any(reached(quickstart, *one)) for one in closed.items()), 60.0, pause=1.0)
    assert quickstart.answers(2) == ["first"] * 2


QUICKSTART = {"model": {"uri": "file://models/baton-tiny", "servedName": "baton-tiny"}}


def reached(deployment: Deployment, source: tuple[str, str], places: list[str]) -> list[bool]:
    """For each place whether a connection from that pod, named with its namespace, gets there."""
    printed = deployment.person.inside(*source, "python3", "-c", CONNECT, *places)
    found: list[bool] = json.loads(printed)
    return found


def at(pod: Item, port: int) -> str:
    return f"{pod['status']['podIP']}:{port}"


def name(pod: Item) -> str:
    return str(pod["metadata"]["name"])


def rules_of(deployment: Deployment, namespace: str, account: str, home: str = "") -> list[Item]:
    """What the API server lets a ServiceAccount do in a namespace."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    words = (
        "create",
        "--validate=false",
        "-f",
        "-",
        "--output",
        "json",
        f"--as=system:serviceaccount:{home or namespace}:{account}",
    )
    printed = deployment.person.kubectl(*words, text=json.dumps(review))
    rules: list[Item] = json.loads(printed)["status"]["resourceRules"]
    return rules


def named(rule: Item) -> list[str]:
    """Kinds with their groups, as kubectl writes them."""
    groups, resources = rule["apiGroups"], rule["resources"]
    return [f"{resource}.{group}".rstrip(".") for group in groups for resource in resources]
