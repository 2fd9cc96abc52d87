"""What all pods have in common: security, scratch space, placement, environment, overrides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from baton_operator.api.pods import EnvVar, Pods
from baton_operator.planner.context import Context
from baton_operator.planner.objects import Object, merged, without_empty

USER: Final = 65532  # the images' user; a group of the same number may write to volumes
TOKEN_FILE: Final = "/var/run/baton/token"
CA_FILE: Final = "/etc/baton/ca.pem"
CERTIFIED: Final = ("workers", "gateway", "bootstrap")  # parts of a service that prove themselves to each other
_CERTIFICATES: Final = "/var/run/baton-tls"
CURVE_FILE: Final = f"{_CERTIFICATES}/curve.key"
OPERATOR_TOKEN: Final = "operator.token"  # beside the bootstrap server's certificate: what its HTTP port asks for
OPERATOR_TOKEN_FILE: Final = f"{_CERTIFICATES}/{OPERATOR_TOKEN}"


def pod_security() -> dict[str, object]:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security(*capabilities: str) -> dict[str, object]:
    """The restricted standard; `capabilities` are the documented exceptions to it."""
    allowed = {"add": list(capabilities)} if capabilities else {}
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], **allowed},
    }


def environment(variables: Sequence[EnvVar]) -> list[object]:
    entries: list[object] = []
    for variable in variables:
        if variable.secret is None:
            entries.append({"name": variable.name, "value": variable.value})
        else:
            source = {"name": variable.secret.name, "key": variable.secret.key}
            entries.append({"name": variable.name, "valueFrom": {"secretKeyRef": source}})
    return entries


def scratch() -> tuple[list[object], list[object]]:
    """Volumes and mounts for what programs write: the root file system is read-only."""
    return [{"name": "tmp", "emptyDir": {}}], [{"name": "tmp", "mountPath": "/tmp"}]


def identity() -> list[object]:
    """Variables that tell a pod its name, by which workers are known, and its address."""
    return [
        {"name": "BATON_WORKER_ID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "BATON_LOG_FORMAT", "value": "json"},
    ]


def secret_token(context: Context) -> tuple[list[object], list[object], list[object]]:
    """Volumes, mounts and variables with which a pod shows the service's shared token."""
    token = context.manifest.spec.security.token
    if token is None:
        return [], [], []
    volume = {"name": "token", "secret": {"secretName": token.name, "items": [{"key": token.key, "path": "token"}]}}
    mount = {"name": "token", "mountPath": TOKEN_FILE.rpartition("/")[0], "readOnly": True}
    return [volume], [mount], [{"name": "BATON_TOKEN_FILE", "value": TOKEN_FILE}]


def certificates_secret(context: Context, part: str) -> str:
    """Name of the Secret that the pods of `part` mount."""
    return context.child_name(part, "tls")


def certificates(context: Context, part: str, prefix: str = "--ssl") -> tuple[list[object], list[object], list[str]]:
    """Volumes, mounts and flags with which pods of `part` prove themselves; none without mutual TLS."""
    if not context.manifest.spec.security.mutual_tls:
        return [], [], []
    # Kubelets bring renewed files into the running pod.
    secret = {"secretName": certificates_secret(context, part), "defaultMode": 0o440}
    mount = {"name": "certificates", "mountPath": _CERTIFICATES, "readOnly": True}
    flags = []
    for name, file in (("certfile", "tls.crt"), ("keyfile", "tls.key"), ("ca-certs", "ca.crt")):
        flags += [f"{prefix}-{name}", f"{_CERTIFICATES}/{file}"]
    return [{"name": "certificates", "secret": secret}], [mount], flags


def downloads(context: Context) -> tuple[list[object], list[object], list[object]]:
    """Volumes, mounts and variables that lead downloads through the proxy and make them trust the private CA."""
    security = context.manifest.spec.security
    volumes: list[object] = []
    mounts: list[object] = []
    variables: list[object] = []
    if security.ca is not None:
        items = [{"key": security.ca.key, "path": "ca.pem"}]
        volumes.append({"name": "ca", "configMap": {"name": security.ca.name, "items": items}})
        mounts.append({"name": "ca", "mountPath": CA_FILE.rpartition("/")[0], "readOnly": True})
        variables += [{"name": name, "value": CA_FILE} for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")]
    if security.proxy is not None:
        own = [".svc", f".{context.settings.cluster_domain}", "localhost", "127.0.0.1"]
        variables += [{"name": name, "value": security.proxy.url} for name in ("HTTP_PROXY", "HTTPS_PROXY")]
        variables.append({"name": "NO_PROXY", "value": ",".join([*own, *security.proxy.exceptions])})
    return volumes, mounts, variables


def template(context: Context, pods: Pods, labels: Object, spec: Object, affinity: Object | None = None) -> object:
    """The pod template around `spec`, with the manifest's placement and overrides; our own labels always stand."""
    place = pods.placement
    placed = without_empty(
        {
            "nodeSelector": place.node_selector,
            "tolerations": [toleration.to_object() for toleration in place.tolerations],
            "affinity": place.affinity or affinity,
            "runtimeClassName": place.runtime_class,
            "priorityClassName": place.priority_class,
            "schedulerName": place.scheduler,
            "imagePullSecrets": [{"name": name} for name in place.image_pull_secrets],
            "resourceClaims": [
                {"name": claim.name, "resourceClaimTemplateName": claim.template} for claim in place.resource_claims
            ],
        }
    )
    made: Object = {
        "metadata": without_empty({"labels": {**place.labels, **labels}, "annotations": place.annotations}),
        "spec": {
            "serviceAccountName": context.child_name("pods"),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": pod_security(),
            **spec,
            **placed,
        },
    }
    return merged(merged(made, pods.overrides or {}), {"metadata": {"labels": dict(labels)}})


def resources(pods: Pods, extra: Object | None = None) -> dict[str, object]:
    """A container's resources; `extra` joins requests and limits where the manifest does not name it."""
    more = dict(extra or {})
    asked = {
        "requests": {**more, **pods.resources.requests},
        "limits": {**more, **pods.resources.limits},
        "claims": [{"name": claim.name} for claim in pods.placement.resource_claims],
    }
    return without_empty(asked)
