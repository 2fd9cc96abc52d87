"""Edit one field: the right children change, and no other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic.alias_generators import to_snake
from support.fake_cluster import APIS, START, FakeCluster, service_of

from baton_operator.api.fields import Part
from baton_operator.api.v1alpha1 import Spec
from baton_operator.planner import Observed, Settings, plan
from baton_operator.planner.worker import ROLES

NEW_PREFILL, NEW_DECODE = "new prefill", "new decode"
BOTH = {NEW_PREFILL, NEW_DECODE}
BOOTSTRAP = "Deployment/chat-bootstrap-0"
GATEWAY = "Deployment/chat-gateway"
PODS = {BOOTSTRAP, GATEWAY}


def spec(**parts: str) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in {"model": "{uri: 'hf://a/b'}", **parts}.items()) + "}"


@cache
def children(text: str) -> dict[str, Any]:
    """By kind and name; workloads of roles without their revision in the key."""
    made = plan(service_of(text), Observed(), START, Settings(apis=APIS))
    found: dict[str, Any] = {}
    for item in (*made.apply, *made.create):
        metadata = item["metadata"]
        assert isinstance(metadata, Mapping)
        found[f"{item['kind']}/{metadata['name']}"] = item
    return found


def difference(before: str, after: str) -> set[str]:
    old, new = children(before), children(after)
    names = {name for name in {*old, *new} if old.get(name) != new.get(name)}
    changed = {name for name in names if "-prefill-" not in name and "-decode-" not in name}
    for role in ("prefill", "decode"):
        if any(f"-{role}-" in name and name not in old for name in names):
            changed.add(f"new {role}")
        elif any(f"-{role}-" in name for name in names):
            changed.add(f"same {role}")
    return changed


# A manifest in which every field is set, but those of autoscaling, which take the place of `replicas`.
_PODS: dict[str, Any] = {
    "image": "mine:1",
    "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}},
    "placement": {
        "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "a", "operator": "Equal", "value": "b", "effect": "NoExecute", "tolerationSeconds": 9}],
        "affinity": {"podAffinity": {}},
        "runtimeClass": "nvidia",
        "priorityClass": "high",
        "scheduler": "mine",
        "imagePullSecrets": ["pull"],
        "resourceClaims": [{"name": "gpu", "template": "gpus"}],
        "labels": {"team": "a"},
        "annotations": {"note": "a"},
    },
    "env": [{"name": "A", "value": "b"}, {"name": "C", "secret": {"name": "s", "key": "k"}}],
    "overrides": {"spec": {"hostname": "a"}},
}
_WORKERS = {
    **_PODS,
    "replicas": 2,
    "shmSize": "1Gi",
    "parallelism": {"tensor": 2, "pipeline": 1, "data": 1, "expert": 1, "nodes": 1},
    "extraArgs": ["--page-size", "64"],
}
_SCALING = {"driver": "external", "minReplicas": 1, "maxReplicas": 4}
FULL: dict[str, Any] = {
    "model": {
        "uri": "hf://a/b",
        "revision": "main",
        "servedName": "name",
        "token": {"name": "s", "key": "k"},
        "cache": {"claim": "c"},
    },
    "prefill": _WORKERS,
    "decode": _WORKERS,
    "bootstrap": {**_PODS, "replicas": 1, "leaseSeconds": 3},
    "gateway": {
        **_PODS,
        "admission": {"maxRunningRequests": 5, "keyRequests": 5, "keyTokensPerMinute": 5},
        "apiKeys": {"secret": "clients", "file": "keys"},
        "decodePolicy": "random",
        "service": {"annotations": {"a": "b"}},
        "route": {"parents": [{"name": "g", "namespace": "n", "sectionName": "s"}], "hostnames": ["a.example"]},
        "ingress": {"host": "a.example", "className": "c", "tlsSecret": "t", "annotations": {"a": "b"}},
    },
    "transfer": {"protocol": "rdma", "devices": ["mlx5_0"], "resource": "rdma/hca"},
    "rollout": {"gates": {"maxTtftMilliseconds": 9, "probe": {"prompt": "p", "expect": "e"}}},
    "metrics": {"namespaces": {"a": "b"}, "podMonitor": True, "podMonitorLabels": {"a": "b"}},
    "security": {
        "token": {"name": "s", "key": "k"},
        "ca": {"name": "s", "key": "k"},
        "proxy": {"url": "http://p:3128", "exceptions": ["a"]},
    },
}
POLICIES = {f"NetworkPolicy/chat-{name}" for name in ("workers", "gateway", "bootstrap")}
# What a field changes; of several beginnings of its path the longest counts.
CHANGED: dict[str, set[str]] = {
    "model": BOTH,
    "model.s3.endpoint": {*BOTH, "NetworkPolicy/chat-workers"},  # the port
    **{f"{role}.{name}": BOTH for role in ROLES for name in ("image", "env", "overrides", "parallelism", "extraArgs")},
    **{f"{role}.{name}": {f"new {role}"} for role in ROLES for name in ("resources", "placement", "shmSize")},
    **{f"{role}.replicas": {f"same {role}"} for role in ROLES},
    **{f"{role}.autoscaling": set() for role in ROLES},
    **{f"{role}.autoscaling.minReplicas": {f"same {role}"} for role in ROLES},
    **{f"{role}.autoscaling.maxReplicas": set() for role in ROLES},
    "bootstrap": {BOOTSTRAP},
    "bootstrap.replicas": {*BOTH, GATEWAY, "Deployment/chat-bootstrap-1", "Service/chat-bootstrap-1"},
    "gateway": {GATEWAY},
    "gateway.apiKeys.file": set(),  # for local runs
    "gateway.port": {"Service/chat", "HTTPRoute/chat", "Ingress/chat"},
    "gateway.service": {"Service/chat"},
    "gateway.route": {"HTTPRoute/chat"},
    "gateway.ingress": {"Ingress/chat"},
    "transfer": BOTH,
    "scaling": set(),
    "rollout": set(),
    "rollout.strategy": BOTH,  # workers that change in place fetch from the hub themselves
    "rollout.drainSeconds": {*BOTH, GATEWAY},
    "metrics.namespaces": POLICIES,
    "metrics": {"PodMonitor/chat"},
    "security.networkPolicies": POLICIES,
    "security.mutualTls": {*BOTH, *PODS, "NetworkPolicy/chat-workers"},
    "security.token": {*BOTH, *PODS},
    "security.ca": BOTH,
    "security.proxy": BOTH,
    "security.proxy.url": {*BOTH, "NetworkPolicy/chat-workers"},
}
# Fields of which one value goes with another's: the part to set, and to what.
TOGETHER: dict[str, tuple[str, Any]] = {
    "model.uri": ("model.uri", "hf://a/c"),
    **{
        f"model.s3.{name}": ("model", {"uri": "s3://a/b", "s3": {name: value}})
        for name, value in {"credentials": "c", "endpoint": "http://minio:9000", "region": "r"}.items()
    },
    "model.cache.nodePath": ("model.cache", {"nodePath": "/x"}),
    "transfer.protocol": ("transfer", {"protocol": "tcp"}),
    "security.proxy.url": ("security.proxy.url", "http://p:3129"),
    "tolerations[].operator": ("tolerations[]", {"key": "a", "operator": "Exists", "effect": "NoExecute"}),
    "tolerations[].effect": ("tolerations[]", {"key": "a", "operator": "Equal", "value": "b", "effect": "NoSchedule"}),
    "parallelism.nodes": ("parallelism.nodes", 2),
    "parallelism.tensor": ("parallelism.tensor", 4),
    "shmSize": ("shmSize", "2Gi"),
    "resources.requests": ("resources.requests", {"cpu": "1500m"}),
    "resources.limits": ("resources.limits", {"cpu": "3"}),
    "affinity": ("affinity", {"nodeAffinity": {}}),
    "overrides": ("overrides", {"spec": {"hostname": "b"}}),
    "minReplicas": ("minReplicas", 3),
    "canaryPercent": ("canaryPercent", 50),
}


def leaves(part: type[Part], path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and type of every field that holds no further part."""
    for name, info in part.model_fields.items():
        here = f"{path}.{info.alias or name}".lstrip(".")
        below = part_in(info.annotation)
        if below is None:
            yield here, info.annotation
        else:
            yield from leaves(below, here + ("[]" if get_origin(info.annotation) is list else ""))


def part_in(annotation: Any) -> type[Part] | None:
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    return next((found for inner in get_args(annotation) if (found := part_in(inner))), None)


FIELDS = dict(leaves(Spec))


def edited(manifest: dict[str, Any], path: str) -> dict[str, Any]:
    """`manifest` with another value in the field."""
    target, value = path, None
    for end, (part, given) in TOGETHER.items():
        if path == end or path.endswith(f".{end}"):
            target, value = path[: len(path) - len(end)] + part, given
    result: dict[str, Any] = json.loads(json.dumps(manifest))
    place: Any = result
    *way, last = target.replace("[]", ".[]").split(".")
    for name, following in pairwise([*way, last]):
        place = next(one for one in place if following in one) if name == "[]" else place.setdefault(name, {})
    if last == "[]":
        place[0] = value
    elif value is not None:
        place[last] = value
    else:
        place[last] = other(place[last] if last in place else default_of(target), FIELDS[path])
    return result


def default_of(path: str) -> Any:
    part: Any = Spec.model_validate(FULL, by_alias=True, by_name=False)
    for name in path.split("."):
        part = getattr(part, to_snake(name))
    return part


def other(value: Any, annotation: Any) -> Any:
    """Another value of the same type."""
    for choice in choices(annotation):
        if choice != value:
            return choice
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return f"{value}x"
        case list():
            return [*value, "more"]
        case dict():
            return {**value, "more": "x"}
    raise AssertionError(f"{value!r}: no idea")


def choices(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [one for inner in get_args(annotation) for one in choices(inner) if get_origin(annotation) is not dict]


@pytest.mark.parametrize("path", FIELDS)
def test_the_right_children_change_and_no_other(path: str) -> None:
    before = json.loads(json.dumps(FULL))
    for role in ROLES:
        if path.startswith(f"{role}.autoscaling"):
            before[role]["autoscaling"] = dict(_SCALING)
    if path == "security.mutualTls":
        del before["rollout"]["gates"]["probe"]
    after = edited(before, path)
    assert after != before
    beginnings = [name for name in CHANGED if path == name or path.startswith((f"{name}.", f"{name}["))]
    assert difference(json.dumps(before), json.dumps(after)) == CHANGED[max(beginnings, key=len)]


def test_every_line_of_the_table_is_about_some_field() -> None:
    assert {name for name in CHANGED if not any(path.startswith(name) for path in FIELDS)} == set()


@pytest.mark.parametrize(
    ("parts", "changed"),
    [
        ({"model": "{uri: 'pvc://c/p'}"}, {*BOTH, "NetworkPolicy/chat-workers"}),
        ({"decode": "{autoscaling: {maxReplicas: 4}}"}, {"WorkerScaler/chat-decode"}),
        ({"gateway": "{route: {parents: [{name: g}]}}"}, {"HTTPRoute/chat"}),
        ({"gateway": "{apiKeys: {secret: s}}"}, {GATEWAY, "NetworkPolicy/chat-gateway"}),
        ({"gateway": "{ingress: {host: h, tlsSecret: t}}"}, {"Ingress/chat"}),
        ({"metrics": "{podMonitor: true}"}, {"PodMonitor/chat"}),
        ({"security": "{proxy: {url: 'http://p:3128'}}"}, {*BOTH, "NetworkPolicy/chat-workers"}),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_a_part_that_was_left_out_brings_its_children(parts: dict[str, str], changed: set[str]) -> None:
    assert difference(spec(), spec(**parts)) == changed


def worker(text: str, role: str = "decode") -> dict[str, Any]:
    (item,) = [item for name, item in children(text).items() if f"Deployment/chat-{role}" in name]
    pod: dict[str, Any] = item["spec"]["template"]["spec"]
    return pod


def test_a_worker_pod_keeps_the_restricted_standard() -> None:
    pod = worker(spec())
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in (*pod["containers"], *pod["initContainers"]):
        context = container["securityContext"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert (context["readOnlyRootFilesystem"], context["allowPrivilegeEscalation"]) == (True, False)
    assert not any("hostPath" in volume for volume in pod["volumes"])


def test_rdma_pods_ask_for_the_device_and_may_pin_memory() -> None:
    (container,) = worker(spec(transfer="{protocol: rdma, resource: rdma/hca}"))["containers"]
    assert container["resources"]["limits"] == {"rdma/hca": "1"}
    assert container["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]


@pytest.mark.parametrize(
    ("uri", "flag", "volume"),
    [
        ("hf://a/b", "a/b", "emptyDir"),
        ("s3://bucket/some/path", "s3://bucket/some/path", "emptyDir"),
        ("pvc://claim/some/path", "/models/some/path", "persistentVolumeClaim"),
        ("oci://images/m:1", "/models", "image"),
        ("file:///opt/m", "/opt/m", None),
        ("file://models/m", "/opt/baton/share/models/m", None),
    ],
)
def test_the_model_is_found_where_the_uri_says(uri: str, flag: str, volume: str | None) -> None:
    pod = worker(spec(model=f"{{uri: '{uri}'}}"))
    (container,) = pod["containers"]
    assert container["args"][:3] == ["serve", "--model-path", flag]
    volumes = [item for item in pod["volumes"] if item["name"] == "model"]
    assert [volume in item for item in volumes] == ([True] if volume else [])
    assert ("initContainers" in pod) == uri.startswith(("hf", "s3"))


def test_a_bucket_is_read_by_the_init_container_and_by_workers_that_change_in_place() -> None:
    s3 = "{credentials: mine, endpoint: 'http://minio.data.svc:9000', region: home}"
    model = f"{{uri: 's3://bucket/m', s3: {s3}, cache: {{claim: c}}}}"

    def environments(strategy: str) -> list[dict[str, Any]]:
        pod = worker(spec(model=model, rollout=f"{{strategy: {strategy}}}"))
        return [{one["name"]: one for one in pod[kind][0]["env"]} for kind in ("initContainers", "containers")]

    fetch, serve = environments("Surge")
    assert fetch["AWS_ENDPOINT_URL"]["value"] == "http://minio.data.svc:9000"
    assert fetch["AWS_DEFAULT_REGION"]["value"] == "home"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert fetch[name]["valueFrom"] == {"secretKeyRef": {"name": "mine", "key": name}}
    assert fetch["AWS_SESSION_TOKEN"]["valueFrom"]["secretKeyRef"]["optional"] is True
    assert serve["HF_HUB_OFFLINE"]["value"] == "1"
    assert not any(name.startswith("AWS") for name in serve)
    assert fetch["HF_HOME"] == serve["HF_HOME"]
    fetch, serve = environments("InPlace")
    assert {name: one for name, one in serve.items() if name.startswith("AWS")} == {
        name: one for name, one in fetch.items() if name.startswith("AWS")
    }
    egress = children(spec(model=model))["NetworkPolicy/chat-workers"]["spec"]["egress"]
    assert [port["port"] for port in egress[-1]["ports"]] == [443, 80, 9000]


def test_what_reads_a_bucket_is_part_of_the_revision() -> None:
    before, after = ("{uri: 's3://b/m'}", "{uri: 's3://b/m', s3: {credentials: c}}")
    assert difference(spec(model=before), spec(model=after)) == BOTH


def test_decode_alone_serves_whole() -> None:
    made = children(spec(prefill="{replicas: 0}"))
    assert not any("-prefill-" in name for name in made)
    (container,) = worker(spec(prefill="{replicas: 0}"))["containers"]
    assert container["args"][container["args"].index("--disaggregation-mode") + 1] == "null"


def test_a_worker_over_several_nodes_is_a_leader_worker_set() -> None:
    role, secret = "{parallelism: {tensor: 2, nodes: 2}}", "{mutualTls: true}"
    made = children(spec(decode=role, prefill="{replicas: 0}", security=secret))
    (item,) = [item for name, item in made.items() if "LeaderWorkerSet" in name]
    group = item["spec"]["leaderWorkerTemplate"]
    assert (group["size"], group["restartPolicy"]) == (2, "RecreateGroupOnPodRestart")
    (container,) = group["workerTemplate"]["spec"]["containers"]
    words = dict(zip(container["args"], container["args"][1:], strict=False))
    assert (words["--nnodes"], words["--node-rank"], words["--tp-size"]) == ("2", "$(LWS_WORKER_INDEX)", "2")
    assert words["--dist-init-addr"] == "$(LWS_LEADER_ADDRESS):20000"
    assert words["--host"] == "$(POD_IP)"  # at which peers reach the pages of each pod's ranks
    assert words["--disaggregation-curve-key-file"]  # whole, but its pods have to know each other
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert words["--probe-port"] == str(ports["http"])
    assert {container[probe]["httpGet"]["port"] for probe in ("startupProbe", "readinessProbe")} == {"http"}


def test_overrides_are_laid_over_by_name_but_our_labels_stand() -> None:
    overrides = (
        "{metadata: {labels: {baton.dev/service: x, mine: y}}, "
        "spec: {containers: [{name: worker, tty: true}, {name: extra, image: i}]}}"
    )
    (item,) = [i for n, i in children(spec(decode=f"{{overrides: {overrides}}}")).items() if "ment/chat-decode" in n]
    template = item["spec"]["template"]
    assert [c["name"] for c in template["spec"]["containers"]] == ["worker", "extra"]
    assert template["spec"]["containers"][0]["tty"] is True
    assert template["spec"]["containers"][0]["image"]
    assert template["metadata"]["labels"]["baton.dev/service"] == "chat"
    assert template["metadata"]["labels"]["mine"] == "y"


def test_another_release_of_the_operator_restarts_no_worker() -> None:
    cluster = FakeCluster(spec())
    cluster.settle()
    before = cluster.replicas()
    cluster.settings = Settings(apis=APIS, worker_image="baton-worker:9", gateway_image="baton-gateway:9")
    cluster.settle()
    assert cluster.replicas() == before
    workers = {name: item for name, item in cluster.of_kind("Deployment").items() if name in before}
    images = {item["spec"]["template"]["spec"]["containers"][0]["image"] for item in workers.values()}
    assert images == {"baton-worker:0.1.0"}


def test_with_mutual_tls_the_operator_reaches_workers_for_a_probe_alone() -> None:
    """Figures are on the port for probes, which asks for no certificate."""

    def open_to_the_operator(rollout: str) -> set[int]:
        cluster = FakeCluster(f"{{model: {{uri: 'hf://a/b'}}, security: {{mutualTls: true}}, rollout: {rollout}}}")
        cluster.round()
        rules = cluster.of_kind("NetworkPolicy")["chat-workers"]["spec"]["ingress"]
        return {
            port["port"]
            for rule in rules
            for peer in rule["from"]
            if "baton-operator" in str(peer)
            for port in rule["ports"]
        }

    assert open_to_the_operator("{}") == {30001}
    assert open_to_the_operator("{gates: {probe: {prompt: hi, expect: there}}}") == {30000, 30001}


def test_with_api_keys_scrapers_and_the_operator_have_a_port_of_their_own_and_clients_theirs() -> None:
    cluster = FakeCluster("{model: {uri: 'hf://a/b'}, gateway: {apiKeys: {secret: clients}}}")
    cluster.round()
    pod = cluster.of_kind("Deployment")["chat-gateway"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    words = container["args"]
    folder = words[words.index("--api-keys") + 1]
    (volume,) = [one["name"] for one in pod["volumes"] if one.get("secret", {}).get("secretName") == "clients"]
    assert [one["mountPath"] for one in container["volumeMounts"] if one["name"] == volume] == [folder]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert ports == {"openai": 8000, "http": int(words[words.index("--probe-port") + 1])}
    assert container["readinessProbe"]["tcpSocket"] == {"port": "openai"}
    assert cluster.of_kind("Service")["chat"]["spec"]["ports"][0]["targetPort"] == 8000
    open_to_all, figures = cluster.of_kind("NetworkPolicy")["chat-gateway"]["spec"]["ingress"]
    assert open_to_all == {"ports": [{"port": 8000, "protocol": "TCP"}]}
    assert (figures["ports"], len(figures["from"])) == ([{"port": ports["http"], "protocol": "TCP"}], 2)


def test_the_bootstrap_servers_http_port_asks_for_a_token_with_mutual_tls() -> None:
    cluster = FakeCluster("{model: {uri: 'hf://a/b'}, security: {mutualTls: true}}")
    cluster.round()
    pod = cluster.of_kind("Deployment")["chat-bootstrap-0"]["spec"]["template"]["spec"]
    words = pod["containers"][0]["args"]
    assert words[words.index("--http-token-file") + 1] == "/var/run/baton-tls/operator.token"


def test_a_pod_that_fetches_its_model_says_so_where_its_worker_will() -> None:
    cluster = FakeCluster("{model: {uri: 'hf://a/b', revision: r}, security: {mutualTls: true}}")
    cluster.round()
    (pod, *_) = (
        item["spec"]["template"]["spec"]
        for name, item in cluster.of_kind("Deployment").items()
        if name.startswith("chat-prefill")
    )
    (fetch,), (worker,) = pod["initContainers"], pod["containers"]
    assert fetch["args"][:4] == ["fetch", "a/b", "--revision", "r"]
    address = "--disaggregation-bootstrap-addr"
    assert (
        fetch["args"][fetch["args"].index("--bootstrap-addr") + 1] == worker["args"][worker["args"].index(address) + 1]
    )
    names = {one["name"]: one for one in worker["env"]}
    assert [names[name] for name in ("BATON_WORKER_ID", "POD_IP")] == fetch["env"][:2]
    assert {mount["name"] for mount in fetch["volumeMounts"]} == {"model", "tmp", "certificates"}
