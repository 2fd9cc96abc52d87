"""What a child's builder knows: the service, the operator's settings, and how children are named and owned."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Self

from baton_operator.api import InferenceService
from baton_operator.api.fields import API_VERSION, GROUP
from baton_operator.api.status import Status
from baton_operator.api.v1alpha1 import KIND
from baton_operator.planner.objects import Object, int_at, list_at, map_at, text_at, value_at

FIELD_MANAGER: Final = "baton-operator"
OPERATOR_NAME: Final = "baton-operator"  # label app.kubernetes.io/name of the operator's own pods
FINALIZER: Final = f"{GROUP}/drain"

INSTANCE: Final = f"{GROUP}/service"  # not app.kubernetes.io/instance, which Helm and Argo CD set to their own names
COMPONENT: Final = "app.kubernetes.io/component"
REVISION: Final = f"{GROUP}/revision"
VERSION: Final = f"{GROUP}/version"

# Of a service, by whoever steers a rollout: the generation of the manifest that is meant.
PROMOTED: Final = f"{GROUP}/promoted"  # its canary may become the whole
UNDONE: Final = f"{GROUP}/undone"  # it is to be rolled back

WORKER_PORT: Final = 30000
PROBE_PORT: Final = 30001  # of workers whose other port asks for a certificate
BOOTSTRAP_PORT: Final = 8998
BOOTSTRAP_HTTP_PORT: Final = 8999
GATEWAY_PORT: Final = 8000
GATEWAY_PROBE_PORT: Final = 8001  # of gateways whose other port asks for an API key

MAX_NAME = 63
MAX_WORKLOAD_NAME = 44  # LeaderWorkerSet and StatefulSet append up to 19 characters and put the whole into a label
LEADER_WORKER_SET: Final = "leaderworkerset.x-k8s.io/v1"


@dataclass(frozen=True)
class Settings:
    """What the operator was started with and found in the cluster.

    `images` are taken where a manifest names none. `apis` holds the optional API groups that the cluster serves, as
    group/version. Pods in `namespace` that carry the label app.kubernetes.io/name: baton-operator are the operator.
    """

    worker_image: str = "baton-worker:0.1.0"
    gateway_image: str = "baton-gateway:0.1.0"
    namespace: str = "baton-system"
    cluster_domain: str = "cluster.local"
    apis: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Service:
    """An InferenceService as the API server has it."""

    manifest: InferenceService
    uid: str = ""
    generation: int = 1
    finalizers: tuple[str, ...] = ()
    deleted_at: datetime | None = None

    @classmethod
    def from_object(cls, item: Object) -> Self:
        """Read what the API server sent; pydantic's ValidationError when it does not fit this version's schema."""
        meta = map_at(item, "metadata")
        own = {key: meta[key] for key in ("name", "namespace", "labels", "annotations") if meta.get(key)}
        deleted = text_at(meta, "deletionTimestamp")
        return cls(
            manifest=InferenceService.model_validate({**item, "metadata": own}, by_alias=True, by_name=False),
            uid=text_at(meta, "uid"),
            generation=int_at(meta, "generation"),
            finalizers=tuple(str(name) for name in list_at(meta, "finalizers")),
            deleted_at=datetime.fromisoformat(deleted) if deleted else None,
        )

    @property
    def status(self) -> Status:
        return self.manifest.status or Status()

    def says(self, annotation: str) -> bool:
        """Whether an annotation names the present generation."""
        return self.manifest.metadata.annotations.get(annotation) == str(self.generation)


@dataclass(frozen=True)
class Context:
    """The input of every builder."""

    service: Service
    settings: Settings = Settings()

    @property
    def manifest(self) -> InferenceService:
        return self.service.manifest

    @property
    def name(self) -> str:
        return self.manifest.metadata.name

    @property
    def namespace(self) -> str:
        return self.manifest.metadata.namespace

    def child_name(self, *parts: str, limit: int = MAX_NAME) -> str:
        """Name of a child: service and parts with dashes between, the service's cut and marked where it is too long."""
        tail = "".join(f"-{part}" for part in parts)
        if len(self.name) + len(tail) <= limit:
            return self.name + tail
        mark = hashlib.sha256(self.name.encode()).hexdigest()[:5]
        return f"{self.name[: limit - len(tail) - 6]}-{mark}{tail}"

    def selector(self, component: str, revision: str = "") -> dict[str, str]:
        """Labels that pick the pods of a component, of one revision or of all."""
        labels = {INSTANCE: self.name, COMPONENT: component}
        return {**labels, REVISION: revision} if revision else labels

    def labels(self, component: str) -> dict[str, str]:
        return {
            "app.kubernetes.io/name": "baton",
            **self.selector(component),
            "app.kubernetes.io/managed-by": FIELD_MANAGER,
        }

    def child(
        self, api_version: str, kind: str, name: str, component: str, body: Object, labels: Object | None = None
    ) -> dict[str, object]:
        """An object that belongs to the service and goes with it."""
        owner = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": self.name,
            "uid": self.service.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }
        metadata: dict[str, object] = {
            "name": name,
            "namespace": self.namespace,
            "labels": {**self.labels(component), **(labels or {})},
        }
        if self.service.uid:
            metadata["ownerReferences"] = [owner]
        return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **body}

    def host(self, service: str) -> str:
        """DNS name of a Service of ours."""
        return f"{service}.{self.namespace}.svc.{self.settings.cluster_domain}"

    def bootstrap_names(self) -> Sequence[str]:
        return [self.child_name("bootstrap", str(index)) for index in range(self.manifest.spec.bootstrap.replicas)]

    def bootstrap_addresses(self) -> str:
        """host:port of every replica of the bootstrap server, with commas."""
        return ",".join(f"{self.host(name)}:{BOOTSTRAP_PORT}" for name in self.bootstrap_names())


def is_ours(item: Object, service: Service) -> bool:
    """Whether `item` belongs to the service: by owner, not by name."""
    owners = list_at(item, "metadata", "ownerReferences")
    return any(value_at(owner, "uid") == service.uid for owner in owners) if service.uid else True
