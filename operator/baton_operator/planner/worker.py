"""The workload of one role and revision: pods that hold a model."""

from __future__ import annotations

from typing import Final

from baton_operator.api.v1alpha1 import WorkerRole
from baton_operator.planner.context import (
    COMPONENT,
    INSTANCE,
    LEADER_WORKER_SET,
    MAX_WORKLOAD_NAME,
    PROBE_PORT,
    REVISION,
    VERSION,
    WORKER_PORT,
    Context,
)
from baton_operator.planner.model_source import ModelSource, model_source
from baton_operator.planner.objects import Object
from baton_operator.planner.pods import (
    CURVE_FILE,
    certificates,
    container_security,
    environment,
    identity,
    resources,
    scratch,
    secret_token,
    template,
)
from baton_operator.planner.revision import RoleRevision
from baton_operator.worker_flags import role_flags

ROLES: Final = ("prefill", "decode")
WHOLE: Final = "baton.dev/serves-whole"
GROUP_VARIABLE: Final = "BATON_WORKER_GROUP"  # by which a pod that is new asks what to serve: nobody knows its name yet
_RENDEZVOUS_PORT = 20000
_LAST_SECONDS = 4  # for a worker to end once its requests have


def role_of(context: Context, name: str) -> WorkerRole:
    return context.manifest.spec.prefill if name == "prefill" else context.manifest.spec.decode


def workload_name(context: Context, revision: RoleRevision) -> str:
    return context.child_name(revision.role, revision.revision, limit=MAX_WORKLOAD_NAME)


def build_workload(context: Context, revision: RoleRevision, image: str) -> dict[str, object]:
    """A Deployment, or a LeaderWorkerSet when a worker spans nodes; without `replicas`, which the rollout decides."""
    role = role_of(context, revision.role)
    labels = {
        **context.labels(revision.role),
        REVISION: revision.revision,
        VERSION: revision.version,
        WHOLE: str(revision.whole).lower(),
    }
    name = workload_name(context, revision)
    pod = _pod(context, revision, image, labels, name)
    nodes = role.parallelism.nodes
    if nodes > 1:
        # A worker ends as a whole, and so its pods start again together.
        group = {"size": nodes, "restartPolicy": "RecreateGroupOnPodRestart", "workerTemplate": pod}
        body: dict[str, object] = {"leaderWorkerTemplate": group}
        return context.child(LEADER_WORKER_SET, "LeaderWorkerSet", name, revision.role, {"spec": body}, labels)
    selector = {"matchLabels": context.selector(revision.role, revision.revision)}
    body = {"revisionHistoryLimit": 0, "selector": selector, "template": pod}
    return context.child("apps/v1", "Deployment", name, revision.role, {"spec": body}, labels)


def _pod(context: Context, revision: RoleRevision, image: str, labels: Object, name: str) -> object:
    role = role_of(context, revision.role)
    source = model_source(context, image)
    tmp_volumes, tmp_mounts = scratch()
    token_volumes, token_mounts, token_env = secret_token(context)
    tls_volumes, tls_mounts, _ = certificates(context, "workers")
    rdma = context.manifest.spec.transfer.protocol == "rdma" and not revision.whole
    device = context.manifest.spec.transfer.resource
    shm: dict[str, object] = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": role.shm_size}}
    container: dict[str, object] = {
        "name": "worker",
        "image": image,
        "args": worker_args(context, revision, source),
        "env": [*_identity_env(name), _drain_env(context), *source.env, *token_env, *environment(role.env)],
        "ports": _ports(context),
        "resources": resources(role, {device: "1"} if rdma and device else None),
        # RDMA pins memory.
        "securityContext": container_security(*(["IPC_LOCK"] if rdma else [])),
        "volumeMounts": [
            *tmp_mounts,
            {"name": "shm", "mountPath": "/dev/shm"},
            *source.mounts,
            *token_mounts,
            *tls_mounts,
        ],
        # The last lines of the log become the reason that the service's status gives.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **_probes(),
    }
    spec: dict[str, object] = {
        "containers": [container],
        "volumes": [*tmp_volumes, shm, *source.volumes, *token_volumes, *tls_volumes],
        "terminationGracePeriodSeconds": context.manifest.spec.rollout.drain_seconds,
    }
    if source.init:
        spec["initContainers"] = source.init
    return template(context, role, labels, spec, _near_the_other_role(context))


def worker_args(context: Context, revision: RoleRevision, source: ModelSource) -> list[str]:
    """Words after `baton`; $(POD_IP) is filled in by the kubelet, and is what other pods dial."""
    role = role_of(context, revision.role)
    mode, nodes = "null" if revision.whole else revision.role, role.parallelism.nodes
    args = ["serve", *source.flags, "--served-model-name", context.manifest.served_name]
    args += ["--host", "$(POD_IP)", "--port", str(WORKER_PORT)]
    args += role_flags(role, mode, context.manifest.spec.transfer, context.bootstrap_addresses())
    if context.manifest.spec.security.mutual_tls:
        args += [*certificates(context, "workers")[2], "--probe-port", str(PROBE_PORT)]
        args += [] if revision.whole and nodes == 1 else ["--disaggregation-curve-key-file", CURVE_FILE]
    if nodes > 1:
        args += ["--nnodes", str(nodes), "--node-rank", "$(LWS_WORKER_INDEX)"]
        args += ["--dist-init-addr", f"$(LWS_LEADER_ADDRESS):{_RENDEZVOUS_PORT}"]
    return [*args, *role.extra_args]


def _ports(context: Context) -> list[object]:
    """The port named http answers probes and scrapers; with mutual TLS that is one of its own, as they show nothing."""
    if not context.manifest.spec.security.mutual_tls:
        return [{"name": "http", "containerPort": WORKER_PORT}]
    return [{"name": "https", "containerPort": WORKER_PORT}, {"name": "http", "containerPort": PROBE_PORT}]


def _identity_env(group: str) -> list[object]:
    return [
        {"name": GROUP_VARIABLE, "value": group},
        *identity(),
        {"name": "HOME", "value": "/tmp"},
    ]


def _drain_env(context: Context) -> object:
    """A little less than the pod is given, so that requests that take longer end with a reason."""
    seconds = context.manifest.spec.rollout.drain_seconds
    return {"name": "BATON_DRAIN_SECONDS", "value": str(max(1, seconds - _LAST_SECONDS))}


def _probes() -> dict[str, object]:
    """The HTTP port opens once a first request was served, and /health follows the scheduler's tick.

    Start-up may take hours for a large model: the service becomes Degraded after rollout.progressSeconds, but a pod
    that still loads is not killed.
    """
    health = {"httpGet": {"path": "/health", "port": "http"}}
    return {
        "startupProbe": {**health, "periodSeconds": 5, "failureThreshold": 8640},
        "readinessProbe": {**health, "periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 3},
        "livenessProbe": {**health, "periodSeconds": 15, "timeoutSeconds": 5, "failureThreshold": 8},
    }


def _near_the_other_role(context: Context) -> dict[str, object]:
    """Prefers zones that hold workers of the service already: the KV cache travels between them."""
    workers = [{"key": COMPONENT, "operator": "In", "values": list(ROLES)}]
    term = {
        "labelSelector": {"matchLabels": {INSTANCE: context.name}, "matchExpressions": workers},
        "topologyKey": "topology.kubernetes.io/zone",
    }
    preferred = [{"weight": 100, "podAffinityTerm": term}]
    return {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
