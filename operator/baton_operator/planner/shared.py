"""What all pods of a service share: the ServiceAccount, network policies, disruption budgets, the PodMonitor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import urlsplit

from baton_operator.planner.bootstrap import COMPONENT as BOOTSTRAP
from baton_operator.planner.context import (
    BOOTSTRAP_HTTP_PORT,
    BOOTSTRAP_PORT,
    COMPONENT,
    GATEWAY_PORT,
    INSTANCE,
    OPERATOR_NAME,
    PROBE_PORT,
    WORKER_PORT,
    Context,
)
from baton_operator.planner.gateway import COMPONENT as GATEWAY
from baton_operator.planner.gateway import open_port
from baton_operator.planner.objects import Object, without_empty
from baton_operator.planner.revision import RoleRevision
from baton_operator.planner.worker import ROLES, workload_name

POD_MONITOR: Final = "monitoring.coreos.com/v1"
_DNS: Final = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}


def build_account(context: Context) -> dict[str, object]:
    """An identity without any rights: no pod of a service talks to the API server."""
    return context.child(
        "v1", "ServiceAccount", context.child_name("pods"), "pods", {"automountServiceAccountToken": False}
    )


def build_budgets(context: Context, revisions: Iterable[RoleRevision]) -> Iterator[dict[str, object]]:
    """Node drains take one worker of a role and revision at a time, and one gateway."""
    for revision in revisions:
        selector = context.selector(revision.role, revision.revision)
        yield _budget(context, workload_name(context, revision), revision.role, selector)
    yield _budget(context, context.child_name(GATEWAY), GATEWAY, context.selector(GATEWAY))


def _budget(context: Context, name: str, component: str, selector: Object) -> dict[str, object]:
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": selector}, "unhealthyPodEvictionPolicy": "AlwaysAllow"}
    labels = {key: value for key, value in selector.items() if key not in (INSTANCE, COMPONENT)}
    return context.child("policy/v1", "PodDisruptionBudget", name, component, {"spec": spec}, labels)


def build_pod_monitor(context: Context) -> Iterator[dict[str, object]]:
    metrics = context.manifest.spec.metrics
    if not metrics.pod_monitor or POD_MONITOR not in context.settings.apis:
        return
    spec = {
        "selector": {"matchLabels": {INSTANCE: context.name}},
        "podMetricsEndpoints": [{"port": "http", "path": "/metrics", "interval": f"{metrics.interval_seconds}s"}],
        "podTargetLabels": [COMPONENT, "baton.dev/version"],
    }
    labels = metrics.pod_monitor_labels
    yield context.child(POD_MONITOR, "PodMonitor", context.name, "metrics", {"spec": spec}, labels)


def build_network_policies(context: Context) -> Iterator[dict[str, object]]:
    """Who may open a connection to whom; everything that is not named here is closed.

    Workers reach each other on all ports, since transfer engines choose theirs. RDMA passes network policies by.
    """
    if not context.manifest.spec.security.network_policies:
        return
    bootstrap, gateway = _pods(context, BOOTSTRAP), _pods(context, GATEWAY)
    workers = {"podSelector": {"matchLabels": {INSTANCE: context.name}, "matchExpressions": [_worker_expression()]}}
    scrapers = _scrapers(context)
    metrics_port = PROBE_PORT if context.manifest.spec.security.mutual_tls else WORKER_PORT
    figures = open_port(context)
    to_bootstrap = {"to": [bootstrap], "ports": [_port(BOOTSTRAP_PORT)]}
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": context.settings.namespace}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": OPERATOR_NAME}},
    }
    yield _policy(
        context,
        "workers",
        workers["podSelector"],
        [
            {"from": [workers]},
            {"from": [gateway], "ports": [_port(WORKER_PORT)]},
            {"from": [operator, *scrapers], "ports": [_port(metrics_port)]},
            *_probing(context, operator),
        ],
        [{"to": [workers]}, to_bootstrap, _DNS, *_model_sources(context)],
    )
    yield _policy(
        context,
        BOOTSTRAP,
        bootstrap["podSelector"],
        [
            {"from": [workers, gateway], "ports": [_port(BOOTSTRAP_PORT)]},
            {"from": [operator, *scrapers], "ports": [_port(BOOTSTRAP_HTTP_PORT)]},
        ],
        [],
    )
    yield _policy(
        context,
        GATEWAY,
        gateway["podSelector"],
        [
            {"ports": [_port(GATEWAY_PORT)]},  # clients, from wherever the Service can be reached
            *([] if figures == GATEWAY_PORT else [{"from": [operator, *scrapers], "ports": [_port(figures)]}]),
        ],
        [{"to": [workers], "ports": [_port(WORKER_PORT)]}, to_bootstrap, _DNS],
    )


def _probing(context: Context, operator: object) -> list[object]:
    """A rollout's probe is a request like any other, which with mutual TLS goes to another port than figures do."""
    spec = context.manifest.spec
    asked = spec.security.mutual_tls and spec.rollout.gates.probe is not None
    return [{"from": [operator], "ports": [_port(WORKER_PORT)]}] if asked else []


def _model_sources(context: Context) -> list[object]:
    """Hubs and buckets live at addresses that nobody can list."""
    model, proxy = context.manifest.spec.model, context.manifest.spec.security.proxy
    urls = [proxy.url if proxy else "", (model.s3.endpoint if model.s3 else None) or ""]
    numbers = dict.fromkeys([443, 80, *(number for url in urls for number in _port_in(url))])
    return [{"ports": [_port(number) for number in numbers]}] if model.downloaded else []


def _port_in(url: str) -> list[int]:
    try:
        port = urlsplit(url).port
    except ValueError:
        return []
    return [] if port is None else [port]


def _policy(
    context: Context, name: str, selector: object, ingress: list[object], egress: list[object]
) -> dict[str, object]:
    spec = {"podSelector": selector, "policyTypes": ["Ingress", "Egress"], "ingress": ingress, "egress": egress}
    return context.child(
        "networking.k8s.io/v1", "NetworkPolicy", context.child_name(name), name, {"spec": without_empty(spec)}
    )


def _pods(context: Context, component: str) -> dict[str, object]:
    return {"podSelector": {"matchLabels": context.selector(component)}}


def _worker_expression() -> dict[str, object]:
    return {"key": COMPONENT, "operator": "In", "values": list(ROLES)}


def _scrapers(context: Context) -> list[object]:
    labels = context.manifest.spec.metrics.namespaces
    return [{"namespaceSelector": {"matchLabels": labels}}] if labels else [{"podSelector": {}}]


def _port(number: int) -> dict[str, object]:
    return {"port": number, "protocol": "TCP"}
