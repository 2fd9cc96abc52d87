"""The bootstrap server: per replica a Deployment of one pod, and a Service that gives it a lasting address.

Workers register with every replica, so each needs an address of its own. A Deployment rather than a StatefulSet: when a
node is lost its pod is replaced without a person. `Recreate`, because two pods behind one address would show two views.
"""

from __future__ import annotations

from collections.abc import Iterator

from baton_operator.planner.context import BOOTSTRAP_HTTP_PORT, BOOTSTRAP_PORT, Context
from baton_operator.planner.pods import (
    OPERATOR_TOKEN_FILE,
    certificates,
    container_security,
    environment,
    resources,
    scratch,
    secret_token,
    template,
)

COMPONENT = "bootstrap"
_REPLICA = "baton.dev/replica"


def build_bootstrap(context: Context) -> Iterator[dict[str, object]]:
    for index, name in enumerate(context.bootstrap_names()):
        own = {_REPLICA: str(index)}
        selector = {**context.selector(COMPONENT), **own}
        ports = [
            {"name": "grpc", "port": BOOTSTRAP_PORT, "targetPort": "grpc"},
            {"name": "http", "port": BOOTSTRAP_HTTP_PORT, "targetPort": "http"},
        ]
        # Not-ready pods are reachable too: a replica that just started learns the workers only through them.
        service = {"selector": selector, "ports": ports, "publishNotReadyAddresses": True}
        yield context.child("v1", "Service", name, COMPONENT, {"spec": service}, own)
        deployment = {
            "replicas": 1,
            "revisionHistoryLimit": 0,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": selector},
            "template": _pod(context, {**context.labels(COMPONENT), **own}),
        }
        yield context.child("apps/v1", "Deployment", name, COMPONENT, {"spec": deployment}, own)


def _pod(context: Context, labels: dict[str, str]) -> object:
    part = context.manifest.spec.bootstrap
    volumes, mounts = scratch()
    token_volumes, token_mounts, token_env = secret_token(context)
    tls_volumes, tls_mounts, tls_flags = certificates(context, COMPONENT)
    tls_flags += ["--http-token-file", OPERATOR_TOKEN_FILE] if tls_flags else []
    health = {"httpGet": {"path": "/health", "port": "http"}}
    ports = ["--port", str(BOOTSTRAP_PORT), "--http-port", str(BOOTSTRAP_HTTP_PORT)]
    container = {
        "name": "bootstrap",
        "image": part.image or context.settings.gateway_image,
        "args": ["bootstrap", "--host", "0.0.0.0", *ports, "--lease", str(part.lease_seconds), *tls_flags],
        "env": [{"name": "BATON_LOG_FORMAT", "value": "json"}, *token_env, *environment(part.env)],
        "ports": [
            {"name": "grpc", "containerPort": BOOTSTRAP_PORT},
            {"name": "http", "containerPort": BOOTSTRAP_HTTP_PORT},
        ],
        "resources": resources(part),
        "securityContext": container_security(),
        "volumeMounts": [*mounts, *token_mounts, *tls_mounts],
        "readinessProbe": {**health, "periodSeconds": 2},
        "livenessProbe": {**health, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
    }
    every = [*volumes, *token_volumes, *tls_volumes]
    spec = {"containers": [container], "volumes": every, "terminationGracePeriodSeconds": 10}
    return template(context, part, labels, spec)
