"""The kinds of objects that the operator reads and writes, and where the API server keeps them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from baton_operator.api.fields import API_VERSION
from baton_operator.planner.context import LEADER_WORKER_SET
from baton_operator.planner.gateway import GATEWAY_API
from baton_operator.planner.shared import POD_MONITOR


@dataclass(frozen=True)
class Resource:
    """One kind; `watched` when a change of it cannot wait for the next resync."""

    api_version: str
    kind: str
    plural: str
    watched: bool = False

    @property
    def group(self) -> str:
        """API group, empty for the core's."""
        return self.api_version.rpartition("/")[0]

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """Path of the URL; without `namespace` that of all namespaces."""
        parts = ["apis" if self.group else "api", self.api_version]
        parts += ["namespaces", namespace] if namespace else []
        return "/" + "/".join([*parts, self.plural, *filter(None, (name, subresource))])


SERVICES: Final = Resource(API_VERSION, "InferenceService", "inferenceservices", watched=True)
SCALERS: Final = Resource(API_VERSION, "WorkerScaler", "workerscalers", watched=True)
PODS: Final = Resource("v1", "Pod", "pods", watched=True)
EVENTS: Final = Resource("v1", "Event", "events")
LEASES: Final = Resource("coordination.k8s.io/v1", "Lease", "leases")

SECRETS: Final = Resource("v1", "Secret", "secrets")

# What a service may consist of; its Secrets are read apart, as not every operator may. The last three are listed only
# where the cluster serves them.
CHILDREN: Final = (
    SCALERS,
    PODS,
    Resource("v1", "Service", "services"),
    Resource("v1", "ServiceAccount", "serviceaccounts"),
    Resource("apps/v1", "Deployment", "deployments", watched=True),
    Resource("apps/v1", "ControllerRevision", "controllerrevisions"),
    Resource("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    Resource("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    Resource("networking.k8s.io/v1", "Ingress", "ingresses"),
    Resource(LEADER_WORKER_SET, "LeaderWorkerSet", "leaderworkersets", watched=True),
    Resource(GATEWAY_API, "HTTPRoute", "httproutes"),
    Resource(POD_MONITOR, "PodMonitor", "podmonitors"),
)
OPTIONAL: Final = frozenset({LEADER_WORKER_SET, GATEWAY_API, POD_MONITOR})


def served(apis: Iterable[str]) -> list[Resource]:
    """Children that exist in a cluster with these optional APIs."""
    known = set(apis)
    return [resource for resource in CHILDREN if resource.api_version not in OPTIONAL or resource.api_version in known]


def resource_of(api_version: str, kind: str) -> Resource:
    """The entry of one of the kinds above; `KeyError` for any other."""
    for resource in (*CHILDREN, SECRETS, SERVICES, EVENTS, LEASES):
        if (resource.api_version, resource.kind) == (api_version, kind):
            return resource
    raise KeyError(f"{api_version}/{kind}")
