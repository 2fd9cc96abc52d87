"""Services for the cluster's tests, and what can be asked of them."""

from __future__ import annotations

from typing import Any

from support.kube.client import BATON, Cluster, Item, eventually

KINDS = {
    "Deployment": ("apps/v1", "deployments"),
    "ControllerRevision": ("apps/v1", "controllerrevisions"),
    "Service": ("v1", "services"),
    "ServiceAccount": ("v1", "serviceaccounts"),
    "Secret": ("v1", "secrets"),
    "PodDisruptionBudget": ("policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": ("networking.k8s.io/v1", "networkpolicies"),
    "Ingress": ("networking.k8s.io/v1", "ingresses"),
    "WorkerScaler": (BATON, "workerscalers"),
}


class ServiceUnderTest:
    """One InferenceService in a namespace of its own."""

    def __init__(self, cluster: Cluster, namespace: str, name: str = "chat") -> None:
        self.cluster, self.namespace, self.name = cluster, namespace, name

    def apply(self, **spec: Any) -> Item:
        """The whole spec anew, as a person with a manifest does."""
        body = {"model": {"uri": "hf://owner/model"}, **spec}
        metadata = {"name": self.name, "namespace": self.namespace}
        item = {"apiVersion": BATON, "kind": "InferenceService", "metadata": metadata, "spec": body}
        return self.cluster.apply("inferenceservices", item)

    def delete(self) -> None:
        self.cluster.delete(BATON, "inferenceservices", self.namespace, self.name)

    def get(self) -> Item | None:
        return self.cluster.find(BATON, "inferenceservices", self.namespace, self.name)

    def condition(self, kind: str) -> Item:
        """The condition of this kind, or an empty one."""
        found = ((self.get() or {}).get("status") or {}).get("conditions", [])
        return next((item for item in found if item["type"] == kind), {"status": "", "message": "", "reason": ""})

    def children(self) -> dict[tuple[str, str], Item]:
        """By kind and name; pods and what workloads make of themselves are not among them."""
        found: dict[tuple[str, str], Item] = {}
        for kind, (version, plural) in KINDS.items():
            for item in self.cluster.list(version, plural, self.namespace, f"baton.dev/service={self.name}"):
                found[kind, item["metadata"]["name"]] = item
        return found

    def is_ready(self) -> bool:
        """As the operator says of the manifest that is there now."""
        item = self.get()
        ready = self.condition("Ready")
        return (
            item is not None
            and ready["status"] == "True"
            and ready["observedGeneration"] == item["metadata"]["generation"]
        )

    def wait_ready(self, within: float = 30.0) -> None:
        eventually(self.is_ready, within, lambda: (self.get() or {}).get("status"), 0.2)

    def wait_settled(self, within: float = 30.0) -> None:
        """Ready, and the workers of earlier revisions gone."""
        eventually(
            lambda: self.is_ready() and self.condition("Progressing")["status"] == "False",
            within,
            lambda: (self.get() or {}).get("status"),
            0.2,
        )

    def leftovers(self) -> list[str]:
        """What there is of the service besides itself, pods included."""
        pods = self.cluster.list("v1", "pods", self.namespace, f"baton.dev/service={self.name}")
        return [f"{kind} {name}" for kind, name in self.children()] + [pod["metadata"]["name"] for pod in pods]
