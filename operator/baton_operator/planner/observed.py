"""What the cluster and the workers say, in the form that the planner thinks in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from baton_operator.planner.context import COMPONENT, REVISION, VERSION, Service, is_ours
from baton_operator.planner.objects import Object, Ref, int_at, label, list_at, ref_of, text_at
from baton_operator.planner.worker import ROLES, WHOLE

WORKLOAD_KINDS = ("Deployment", "LeaderWorkerSet")
PROVEN = "baton.dev/proven"


@dataclass(frozen=True)
class WorkerReport:
    """One worker as the bootstrap server lists it: `baton_bootstrap.records.Load` says what its figures count."""

    id: str
    role: str
    state: str
    weights: str
    queued_tokens: int = 0
    free_pages: int = 0
    total_pages: int = 0
    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    answer_tokens: int = 0
    answer_seconds: float = 0.0


@dataclass(frozen=True)
class Group:
    """The workers of one role and revision: a workload, and what it was made from.

    `wanted` is what the workload was last told; `present` counts pods that exist, `ready` those that can serve.
    `settled` says that the counts were taken after that was told; `proven` that once a worker was ready.
    """

    role: str
    revision: str
    version: str
    whole: bool
    wanted: int = 0
    present: int = 0
    ready: int = 0
    settled: bool = True
    proven: bool = False
    order: int = 0


@dataclass(frozen=True)
class Observed:
    """`objects` holds every child of the service by reference, `pods` its pods, `workers` what they report.

    `workers` is None when nobody could be asked for them; `waiting` are requests that gateways hold for lack of any.
    `scaled` is what the operator's own autoscaling asks for by role, as far as it has an opinion; `secrets` hold the
    certificates that the service is to have. `refused` has a sentence for each object that the API server did not take.
    """

    objects: Mapping[Ref, Object] = field(default_factory=dict)
    pods: Sequence[Object] = ()
    workers: Sequence[WorkerReport] | None = ()
    waiting: int = 0
    secrets: Sequence[Object] = ()
    scaled: Mapping[str, int] = field(default_factory=dict)
    refused: Sequence[str] = ()

    @classmethod
    def of(cls, service: Service, items: Sequence[Object], workers: Sequence[WorkerReport] = ()) -> Observed:
        """From all objects with the service's label; pods are owned by workloads, everything else by the service."""
        pods = [item for item in items if text_at(item, "kind") == "Pod"]
        others = [item for item in items if text_at(item, "kind") != "Pod" and is_ours(item, service)]
        return cls({ref_of(item): item for item in others}, pods, workers)

    def of_kind(self, *kinds: str) -> list[Object]:
        return [item for ref, item in self.objects.items() if ref.kind in kinds]

    def workloads(self) -> list[Object]:
        """Deployments and LeaderWorkerSets of the two roles."""
        return [item for item in self.of_kind(*WORKLOAD_KINDS) if label(item, COMPONENT) in ROLES]

    def records(self) -> list[Object]:
        """ControllerRevisions, oldest first: each holds the workload of one role and revision as it was first made."""
        found = self.of_kind("ControllerRevision")
        return sorted(found, key=lambda item: (int_at(item, "revision"), ref_of(item)))

    def groups(self) -> list[Group]:
        """One for each workload that exists."""
        records = {(label(item, COMPONENT), label(item, REVISION)): item for item in self.records()}
        groups = []
        for item in self.workloads():
            role, revision = label(item, COMPONENT), label(item, REVISION)
            ready = int_at(item, "status", "readyReplicas")
            record = records.get((role, revision), {})
            groups.append(
                Group(
                    role=role,
                    revision=revision,
                    version=label(item, VERSION),
                    whole=label(item, WHOLE) == "true",
                    wanted=int_at(item, "spec", "replicas"),
                    present=int_at(item, "status", "replicas"),
                    ready=ready,
                    settled=int_at(item, "status", "observedGeneration") >= int_at(item, "metadata", "generation"),
                    proven=ready > 0 or text_at(record, "metadata", "annotations", PROVEN) == "true",
                    order=int_at(record, "revision"),
                )
            )
        return groups


def container_statuses(pod: Object) -> list[Object]:
    """Init containers first, as they run first."""
    found = [*list_at(pod, "status", "initContainerStatuses"), *list_at(pod, "status", "containerStatuses")]
    return [item for item in found if isinstance(item, Mapping)]
