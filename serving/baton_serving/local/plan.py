"""Manifest → processes, purely: what the operator makes of it in a cluster, as commands on one machine."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from baton_operator.api import InferenceService
from baton_operator.api.v1alpha1 import WorkerRole
from baton_operator.worker_flags import role_flags
from baton_serving.errors import ConfigError

# Stand in a command for what is known only once other processes, or an earlier run of this one, have announced it.
BOOTSTRAP = "{bootstrap}"
PORT = "{port}"
HTTP_PORT = "{http_port}"

HOST = "127.0.0.1"
_BATON = (sys.executable, "-m", "baton_serving.cli.main")
_MODES = {"prefill": "prefill", "decode": "decode", "worker": "null"}


class Kind(Enum):
    BOOTSTRAP = "bootstrap"
    WORKER = "worker"
    GATEWAY = "gateway"


@dataclass(frozen=True)
class ProcessSpec:
    """One process. `env` is laid over the environment; `role` of a worker is prefill, decode or worker (whole)."""

    name: str
    kind: Kind
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    role: str = ""

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
class Plan:
    """All processes of a service, bootstrap servers first."""

    name: str
    model: str
    processes: tuple[ProcessSpec, ...]

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
    workers = list(_workers(service, folder, machine, undivided=undivided or spec.prefill.replicas == 0))
    listen = ("--host", HOST, "--port", PORT if port == 0 else str(port))
    argv = (*_BATON, "gateway", *listen, "--bootstrap-addr", BOOTSTRAP, "--policy", spec.gateway.policy)
    gateway = ProcessSpec("gateway", Kind.GATEWAY, argv)
    return Plan(service.metadata.name, service.served_name, (*bootstraps, *workers, gateway))


def _bootstrap_argv(lease_seconds: int) -> tuple[str, ...]:
    ports = ("--host", HOST, "--port", PORT, "--http-port", HTTP_PORT)
    return (*_BATON, "bootstrap", *ports, "--lease", str(lease_seconds))


def _workers(service: InferenceService, folder: Path, machine: Machine, *, undivided: bool) -> Iterator[ProcessSpec]:
    spec = service.spec
    roles = [("worker", spec.decode)] if undivided else [("prefill", spec.prefill), ("decode", spec.decode)]
    count = sum(role.replicas for _, role in roles)
    first_gpu = 0
    for name, role in roles:
        devices = _device_count(role)
        for index in range(role.replicas):
            literal = {variable.name: variable.value for variable in role.env if variable.value is not None}
            env = {"BATON_WORKER_ID": f"{name}-{index}", **literal}
            if machine.gpus:
                env.setdefault("CUDA_VISIBLE_DEVICES", ",".join(_rotated(name, machine.gpus, first_gpu, devices)))
                first_gpu += devices
            env.setdefault("OMP_NUM_THREADS", str(max(1, machine.cores // max(1, count * devices))))
            yield ProcessSpec(f"{name}-{index}", Kind.WORKER, _worker_argv(service, folder, name, role), env, role=name)


def _worker_argv(service: InferenceService, folder: Path, name: str, role: WorkerRole) -> tuple[str, ...]:
    argv = [*_BATON, "serve", *_model_flags(service, folder), "--host", HOST, "--port", "0"]
    return (*argv, *role_flags(role, _MODES[name], service.spec.transfer, BOOTSTRAP), *role.extra_args)


def _model_flags(service: InferenceService, folder: Path) -> list[str]:
    model = service.spec.model
    scheme, _, rest = model.uri.partition("://")
    if scheme == "file":
        path = (folder / rest).resolve()
        if not path.exists():
            raise ConfigError(f"spec.model.uri: there is no {path}; a path without a leading slash begins at {folder}")
        source = str(path)
    elif scheme == "hf":
        source = rest
    else:
        raise ConfigError(f"spec.model.uri: {scheme}:// is for clusters; locally write file:// or hf://")
    flags = ["--model-path", source, "--served-model-name", service.served_name]
    return flags if model.revision is None else [*flags, "--revision", model.revision]


def _device_count(role: WorkerRole) -> int:
    return role.parallelism.tensor * role.parallelism.pipeline * role.parallelism.data


def _rotated(name: str, gpus: Sequence[str], first: int, count: int) -> Iterable[str]:
    """All GPUs, the worker's own `count` first; the others stay visible because NVLink transfers map their memory."""
    if count > len(gpus):
        raise ConfigError(f"spec.{name}.parallelism takes {count} GPUs per worker, but there are {len(gpus)}")
    return [gpus[(first + index) % len(gpus)] for index in range(len(gpus))]
