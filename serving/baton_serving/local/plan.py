"""Manifest → processes, purely: what the operator makes of it in a cluster, as commands on one machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

from baton_operator.api import InferenceService
from baton_operator.api.v1alpha1 import WorkerRole
from baton_operator.planner.revision import wanted_revisions
from baton_operator.worker_flags import role_flags
from baton_serving.errors import ConfigError

# Stand in a command for what is known only once other processes, or an earlier run of this one, have announced it.
BOOTSTRAP = "{bootstrap}"
PORT = "{port}"
HTTP_PORT = "{http_port}"
MEETING = "{meeting}"  # a free HOST:PORT, new at each start of a worker

HOST = "127.0.0.1"
_BATON = (sys.executable, "-m", "baton_serving.cli.main")
_MODES = {"prefill": "prefill", "decode": "decode", "worker": "null"}


class Kind(Enum):
    BOOTSTRAP = "bootstrap"
    WORKER = "worker"
    GATEWAY = "gateway"


@dataclass(frozen=True)
class ProcessSpec:
    """One process. `env` is laid over the environment; `role` of a worker is prefill, decode or worker (whole).

    `nodes` are further processes of the same worker, which come and go with it.
    """

    name: str
    kind: Kind
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    role: str = ""
    nodes: tuple[ProcessSpec, ...] = ()

    def command(self, known: Mapping[str, str]) -> list[str]:
        """The command line with its placeholders filled in; ports that are not known are left to the system."""
        values = {PORT: "0", HTTP_PORT: "0", **known}
        return [values.get(word, word) for word in self.argv]


@dataclass(frozen=True)
class Machine:
    """What the planner may know of the machine: CPU cores, and the ids of its GPUs."""

    cores: int
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class WorkerPlan:
    """Workers of one version of a service: `spec` gives the process of the one with an index in its role.

    `source` and `source_revision` name the checkpoint as a worker fetches it; `settings` is equal where nothing but it
    and the numbers of workers differ.
    """

    version: str
    counts: Mapping[str, int]
    source: str
    source_revision: str
    settings: str
    spec: Callable[[str, int], ProcessSpec]


@dataclass(frozen=True)
class Plan:
    """All processes of a service, bootstrap servers first. `workers` tells how to make more of its workers."""

    name: str
    model: str
    processes: tuple[ProcessSpec, ...]
    workers: WorkerPlan

    def of(self, kind: Kind) -> tuple[ProcessSpec, ...]:
        return tuple(spec for spec in self.processes if spec.kind is kind)


def make_plan(
    service: InferenceService,
    folder: Path,
    machine: Machine,
    *,
    gateway_port: int | None = None,
    undivided: bool = False,
) -> Plan:
    """The processes of `service`; `folder` is where relative file paths of the manifest begin.

    `gateway_port` overrides the manifest's; 0 leaves it to the system. `undivided` runs the decode workers alone, each
    whole requests, as a manifest without prefill replicas does. Raises ConfigError for what one machine cannot do.
    """
    spec = service.spec
    port = spec.gateway.port if gateway_port is None else gateway_port
    bootstraps = [
        ProcessSpec(f"bootstrap-{index}", Kind.BOOTSTRAP, _bootstrap_argv(spec.bootstrap.lease_seconds))
        for index in range(spec.bootstrap.replicas)
    ]
    staff = plan_workers(service, folder, machine, undivided=undivided)
    workers = [staff.spec(role, index) for role, count in staff.counts.items() for index in range(count)]
    listen = ("--host", HOST, "--port", PORT if port == 0 else str(port))
    argv = (*_BATON, "gateway", *listen, "--bootstrap-addr", BOOTSTRAP, *spec.gateway.flags())
    argv = (*argv, *_key_flags(service, folder))
    gateway = ProcessSpec("gateway", Kind.GATEWAY, argv)
    return Plan(service.metadata.name, service.served_name, (*bootstraps, *workers, gateway), staff)


def _bootstrap_argv(lease_seconds: int) -> tuple[str, ...]:
    ports = ("--host", HOST, "--port", PORT, "--http-port", HTTP_PORT)
    return (*_BATON, "bootstrap", *ports, "--lease", str(lease_seconds))


def _key_flags(service: InferenceService, folder: Path) -> tuple[str, ...]:
    """With keys, a port of its own for whoever steers rollouts and has none."""
    keys = service.spec.gateway.api_keys
    if keys is None:
        return ()
    if keys.file is None:
        raise ConfigError("spec.gateway.apiKeys: local runs know no Secrets; write file, the path of one with the keys")
    return ("--api-keys", str((folder / keys.file).resolve()), "--probe-port", "0")


def plan_workers(service: InferenceService, folder: Path, machine: Machine, *, undivided: bool = False) -> WorkerPlan:
    """How workers of `service` run; arguments as for `make_plan`. Raises ConfigError for what one machine cannot do."""
    spec = service.spec
    whole = undivided or spec.prefill.replicas == 0
    roles = {"worker": spec.decode} if whole else {"prefill": spec.prefill, "decode": spec.decode}
    counts = {name: role.replicas for name, role in roles.items()}
    model = _model_flags(service, folder)

    def worker(name: str, index: int) -> ProcessSpec:
        role = roles[name]
        devices, nodes = _device_count(role), role.parallelism.nodes
        before = sum(counts[other] * _device_count(roles[other]) for other in list(roles)[: list(roles).index(name)])
        argv = _worker_argv(service, model, name, role)
        specs = []
        for node in range(nodes):
            env = {"BATON_WORKER_ID": f"{name}-{index}", **_bucket(service), **_literal(role)}
            if machine.gpus:
                first = before + index * devices + node * devices // nodes
                env.setdefault("CUDA_VISIBLE_DEVICES", ",".join(_rotated(name, machine.gpus, first, devices)))
            env.setdefault("OMP_NUM_THREADS", str(max(1, machine.cores // max(1, sum(counts.values()) * devices))))
            words = (*argv, "--node-rank", str(node)) if node else argv
            specs.append(ProcessSpec(f"{name}-{index}", Kind.WORKER, words, env, role=name))
        return replace(specs[0], nodes=tuple(specs[1:]))

    # Neither the model nor what depends on how many workers share the machine.
    same = [(_worker_argv(service, [], name, role), _literal(role)) for name, role in roles.items()]
    settings = repr((service.served_name, _bucket(service), same))
    named = dict(zip(model[::2], model[1::2], strict=True))
    version = wanted_revisions(spec)[0].version
    return WorkerPlan(version, counts, named["--model-path"], named.get("--revision", ""), settings, worker)


def _bucket(service: InferenceService) -> dict[str, str]:
    """Where the manifest's bucket is; who may read it is for the environment to say."""
    bucket = service.spec.model.s3
    places = {} if bucket is None else {"AWS_ENDPOINT_URL": bucket.endpoint, "AWS_DEFAULT_REGION": bucket.region}
    return {name: value for name, value in places.items() if value is not None}


def _literal(role: WorkerRole) -> dict[str, str]:
    return {variable.name: variable.value for variable in role.env if variable.value is not None}


def _worker_argv(service: InferenceService, model: list[str], name: str, role: WorkerRole) -> tuple[str, ...]:
    argv = [*_BATON, "serve", *model, "--host", HOST, "--port", "0"]
    if role.parallelism.nodes > 1:
        argv += ["--nnodes", str(role.parallelism.nodes), "--dist-init-addr", MEETING]
    return (*argv, *role_flags(role, _MODES[name], service.spec.transfer, BOOTSTRAP), *role.extra_args)


def _model_flags(service: InferenceService, folder: Path) -> list[str]:
    model = service.spec.model
    scheme, _, rest = model.uri.partition("://")
    if scheme == "file":
        path = (folder / rest).resolve()
        if not path.exists():
            raise ConfigError(f"spec.model.uri: there is no {path}; a path without a leading slash begins at {folder}")
        source = str(path)
    elif scheme in ("hf", "s3"):
        source = rest if scheme == "hf" else model.uri
    else:
        raise ConfigError(f"spec.model.uri: {scheme}:// is for clusters; locally write file://, hf:// or s3://")
    flags = ["--model-path", source, "--served-model-name", service.served_name]
    return flags if model.revision is None else [*flags, "--revision", model.revision]


def _device_count(role: WorkerRole) -> int:
    return role.parallelism.tensor * role.parallelism.pipeline * role.parallelism.data


def _rotated(name: str, gpus: Sequence[str], first: int, count: int) -> Iterable[str]:
    """All GPUs, the worker's own `count` first; the others stay visible because NVLink transfers map their memory."""
    if count > len(gpus):
        raise ConfigError(f"spec.{name}.parallelism takes {count} GPUs per worker, but there are {len(gpus)}")
    return [gpus[(first + index) % len(gpus)] for index in range(len(gpus))]
