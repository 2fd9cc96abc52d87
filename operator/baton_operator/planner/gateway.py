"""The gateway: a Deployment, the Service that clients use, and what leads to it from outside the cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from baton_operator.planner.context import GATEWAY_PORT, GATEWAY_PROBE_PORT, Context
from baton_operator.planner.objects import Object, without_empty
from baton_operator.planner.pods import (
    certificates,
    container_security,
    environment,
    resources,
    scratch,
    secret_token,
    template,
)

COMPONENT = "gateway"
GATEWAY_API: Final = "gateway.networking.k8s.io/v1"
_KEYS: Final = "/var/run/baton-keys"
_UNLISTED_SECONDS = 5  # until every node has taken a stopping pod out of the Service


def endpoint_url(context: Context) -> str:
    """Base URL of the OpenAI API inside the cluster."""
    return f"http://{context.host(context.name)}:{context.manifest.spec.gateway.port}/v1"


def build_gateway(context: Context) -> Iterator[dict[str, object]]:
    gateway = context.manifest.spec.gateway
    service: dict[str, object] = {
        "type": gateway.service.type,
        "selector": context.selector(COMPONENT),
        "ports": [{"name": "http", "port": gateway.port, "targetPort": GATEWAY_PORT, "appProtocol": "http"}],
    }
    yield _annotated(
        context.child("v1", "Service", context.name, COMPONENT, {"spec": service}), gateway.service.annotations
    )
    deployment: dict[str, object] = {
        "replicas": gateway.replicas,
        "revisionHistoryLimit": 2,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "selector": {"matchLabels": context.selector(COMPONENT)},
        "template": _pod(context),
    }
    yield context.child("apps/v1", "Deployment", context.child_name("gateway"), COMPONENT, {"spec": deployment})
    yield from _route(context)
    yield from _ingress(context)


def _pod(context: Context) -> object:
    part = context.manifest.spec.gateway
    volumes, mounts = scratch()
    token_volumes, token_mounts, token_env = secret_token(context)
    tls_volumes, tls_mounts, tls_flags = certificates(context, COMPONENT, "--worker-ssl")
    key_volumes, key_mounts, key_flags = _api_keys(context)
    ports = _ports(context)
    port = {"tcpSocket": {"port": ports[0]["name"]}}
    args = ["gateway", "--host", "0.0.0.0", "--port", str(GATEWAY_PORT)]
    args += ["--bootstrap-addr", context.bootstrap_addresses(), *part.flags(), *tls_flags, *key_flags]
    container = {
        "name": "gateway",
        "image": part.image or context.settings.gateway_image,
        "args": args,
        "env": [{"name": "BATON_LOG_FORMAT", "value": "json"}, *token_env, *environment(part.env)],
        "ports": ports,
        "resources": resources(part),
        "securityContext": container_security(),
        "volumeMounts": [*mounts, *token_mounts, *tls_mounts, *key_mounts],
        # Ready with a port, not with workers: without any it answers 503 with a reason, or lets requests wait.
        "readinessProbe": {**port, "periodSeconds": 2},
        "livenessProbe": {**port, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        "lifecycle": {"preStop": {"sleep": {"seconds": _UNLISTED_SECONDS}}},
    }
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": context.selector(COMPONENT)},
    }
    spec = {
        "containers": [container],
        "volumes": [*volumes, *token_volumes, *tls_volumes, *key_volumes],
        "topologySpreadConstraints": [spread],
        "terminationGracePeriodSeconds": context.manifest.spec.rollout.drain_seconds + _UNLISTED_SECONDS,
    }
    return template(context, part, context.labels(COMPONENT), spec)


def open_port(context: Context) -> int:
    """Where a gateway tells its figures to whoever may connect there: with API keys on its port for probes."""
    return GATEWAY_PORT if context.manifest.spec.gateway.api_keys is None else GATEWAY_PROBE_PORT


def _ports(context: Context) -> list[dict[str, object]]:
    """That of clients first. The port named http answers scrapers: with API keys one of its own, as they have none."""
    if open_port(context) == GATEWAY_PORT:
        return [{"name": "http", "containerPort": GATEWAY_PORT}]
    return [{"name": "openai", "containerPort": GATEWAY_PORT}, {"name": "http", "containerPort": GATEWAY_PROBE_PORT}]


def _api_keys(context: Context) -> tuple[list[object], list[object], list[str]]:
    """Volumes, mounts and flags with which clients' keys are known."""
    keys = context.manifest.spec.gateway.api_keys
    if keys is None:
        return [], [], []
    # Kubelets bring changed keys into the running pod.
    volume = {"name": "api-keys", "secret": {"secretName": keys.secret, "defaultMode": 0o440}}
    mount = {"name": "api-keys", "mountPath": _KEYS, "readOnly": True}
    return [volume], [mount], ["--api-keys", _KEYS, "--probe-port", str(GATEWAY_PROBE_PORT)]


def _route(context: Context) -> Iterator[dict[str, object]]:
    gateway = context.manifest.spec.gateway
    if gateway.route is None or GATEWAY_API not in context.settings.apis:
        return
    backend = {"name": context.name, "port": gateway.port}
    spec = {
        "parentRefs": [parent.to_object() for parent in gateway.route.parents],
        "hostnames": gateway.route.hostnames,
        # A long answer is one request: no deadline but the gateway's own.
        "rules": [{"backendRefs": [backend], "timeouts": {"request": "0s"}}],
    }
    yield context.child(GATEWAY_API, "HTTPRoute", context.name, COMPONENT, {"spec": without_empty(spec)})


def _ingress(context: Context) -> Iterator[dict[str, object]]:
    gateway = context.manifest.spec.gateway
    ingress = gateway.ingress
    if ingress is None:
        return
    backend = {"service": {"name": context.name, "port": {"number": gateway.port}}}
    path = {"path": "/", "pathType": "Prefix", "backend": backend}
    spec = {
        "ingressClassName": ingress.class_name,
        "tls": [{"hosts": [ingress.host], "secretName": ingress.tls_secret}] if ingress.tls_secret else [],
        "rules": [{"host": ingress.host, "http": {"paths": [path]}}],
    }
    made = context.child("networking.k8s.io/v1", "Ingress", context.name, COMPONENT, {"spec": without_empty(spec)})
    yield _annotated(made, ingress.annotations)


def _annotated(item: dict[str, object], annotations: Object) -> dict[str, object]:
    metadata = item["metadata"]
    assert isinstance(metadata, dict)
    return {**item, "metadata": {**metadata, "annotations": dict(annotations)}} if annotations else item
