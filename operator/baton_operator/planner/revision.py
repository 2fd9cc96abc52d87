"""Revisions: hashes of what pods see.

A *version* covers what prefill and decode must share to work together: model, transfer, flags, images. A role's
*revision* covers the version and whatever else its own pods see. Hashes are taken over the manifest, not over the pod
template made from it, so that another release of the operator finds the same revision and restarts nothing. Replica
counts are in neither. The *revision of the service* is named by those of its roles.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from baton_operator.api.v1alpha1 import Spec, WorkerRole

# Fields of a role that may decide what its workers compute, and so whom they can work with.
_PAIRING = {"parallelism", "extra_args", "env", "image", "overrides"}
_NOT_OF_PODS = {"replicas", "autoscaling"}


@dataclass(frozen=True)
class RoleRevision:
    """A role as one revision has it; `whole` when its workers run requests from prompt to answer."""

    role: str
    revision: str
    version: str
    whole: bool


def wanted_revisions(spec: Spec) -> tuple[RoleRevision, ...]:
    """One per role that has workers: decode, and prefill before it where the service is divided."""
    version = _digest(_version_inputs(spec))
    names = ("prefill", "decode") if spec.divided else ("decode",)
    return tuple(
        RoleRevision(name, _digest([version, name, _role_inputs(spec, _role(spec, name))]), version, not spec.divided)
        for name in names
    )


def name_of(revisions: Iterable[RoleRevision]) -> str:
    """Name of the service's revision: the hashes of its roles, prefill before decode."""
    return "-".join(one.revision for one in revisions)


def _version_inputs(spec: Spec) -> object:
    roles = (spec.prefill, spec.decode) if spec.divided else (spec.decode,)
    return {
        "model": spec.model.model_dump(include={"uri", "revision", "served_name"}, exclude_defaults=True),
        "transfer": spec.transfer.model_dump(exclude_defaults=True) if spec.divided else None,
        **({"mutual_tls": True} if spec.security.mutual_tls else {}),
        "roles": [role.model_dump(include=_PAIRING, exclude_defaults=True) for role in roles],
    }


def _role_inputs(spec: Spec, role: WorkerRole) -> object:
    return {
        "role": role.model_dump(exclude=_PAIRING | _NOT_OF_PODS, exclude_defaults=True),
        "model": spec.model.model_dump(include={"token", "s3", "cache"}, exclude_defaults=True),
        "fetches": fetches(spec),
        "bootstrap": spec.bootstrap.replicas,
        "drain": spec.rollout.drain_seconds,
        "security": spec.security.model_dump(include={"token", "ca", "proxy"}, exclude_defaults=True),
    }


def fetches(spec: Spec) -> bool:
    """Whether running workers fetch checkpoints themselves."""
    return spec.rollout.strategy == "InPlace" and spec.model.downloaded


def _role(spec: Spec, name: str) -> WorkerRole:
    return spec.prefill if name == "prefill" else spec.decode


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
