"""What the cluster and the workers say, in the form that the planner thinks in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from baton_operator.planner.context import COMPONENT, REVISION, VERSION, Service, is_ours
from baton_operator.planner.objects import Object, Ref, int_at, label, list_at, ref_of, text_at
from baton_operator.planner.revision import RoleRevision
from baton_operator.planner.worker import ROLES, WHOLE
from baton_operator.rollout.health import Counts

WORKLOAD_KINDS = ("Deployment", "LeaderWorkerSet")
PROVEN = "baton.dev/proven"
WEIGHTS = "baton.dev/weights"

_ENDED = ("Failed", "Succeeded")

Key = tuple[str, str]  # role, revision


@dataclass(frozen=True)
class WorkerReport:
    """One worker as the bootstrap server lists it. `revision` is the assignment that it heard last, `phase` where it
    stands with it, `staged` the digest of what it has read for it, `done` of `total` bytes. `links` are bytes a second
    at which KV pages come from other workers, by their ids. For the other figures see
    `baton_bootstrap.records.Load`.
    """

    id: str
    role: str
    state: str
    weights: str
    url: str = ""
    incarnation: str = ""
    revision: str = ""
    phase: str = "serving"
    staged: str = ""
    error: str = ""
    done: int = 0
    total: int = 0
    queued_tokens: int = 0
    free_pages: int = 0
    total_pages: int = 0
    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    answer_tokens: int = 0
    answer_seconds: float = 0.0
    links: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """The workers of one role and revision: a workload, and what it was made from.

    `wanted` is what the workload was last told; `present` counts pods that exist, `ready` those that can serve.
    `proven` says that once a worker was ready.
    """

    role: str
    revision: str
    version: str
    whole: bool
    wanted: int = 0
    present: int = 0
    ready: int = 0
    proven: bool = False
    order: int = 0


def key_of(group: Group | RoleRevision) -> Key:
    return group.role, group.revision


def ready_pairs(groups: Iterable[Group]) -> dict[str, int]:
    """For each version how many prefill and decode workers can pair up; workers, where they serve whole."""
    prefill: dict[str, int] = {}
    decode: dict[str, int] = {}
    whole: dict[str, int] = {}
    for group in groups:
        counts = whole if group.whole else prefill if group.role == "prefill" else decode
        counts[group.version] = counts.get(group.version, 0) + group.ready
    versions = {*prefill, *decode, *whole}
    return {v: whole.get(v, 0) + min(prefill.get(v, 0), decode.get(v, 0)) for v in versions}


@dataclass(frozen=True)
class Observed:
    """`objects` holds every child of the service by reference, `pods` its pods, `workers` what they report.

    `workers` is None when nobody could be asked for them; `fetching` are pods that fetch their model and are no workers
    yet; `waiting` are requests that gateways hold for lack of any.
    `gateways` has for each gateway that answered the workers to which it sends requests, `counts` how those fare,
    `probes` by revision whether the probe was answered as expected. `scaled` is what the operator's own autoscaling
    asks for by role, as far as it has an opinion; `secrets` hold the certificates that the service is to have, None
    when the operator may not touch Secrets. `token` is what the bootstrap server asks for, `token_trouble` says why it
    could not be read. `refused` has a sentence for each object that the API server would not take.
    """

    objects: Mapping[Ref, Object] = field(default_factory=dict)
    pods: Sequence[Object] = ()
    workers: Sequence[WorkerReport] | None = None
    fetching: Sequence[WorkerReport] = ()
    gateways: Sequence[frozenset[str]] = ()
    counts: Mapping[str, Counts] = field(default_factory=dict)
    probes: Mapping[str, bool] = field(default_factory=dict)
    waiting: int = 0
    scaled: Mapping[str, int] = field(default_factory=dict)
    secrets: Sequence[Object] | None = ()
    token: str = field(default="", repr=False)
    token_trouble: str = ""
    refused: Sequence[str] = ()

    @classmethod
    def of(cls, service: Service, items: Sequence[Object], workers: Sequence[WorkerReport] | None = None) -> Observed:
        """From all objects with the service's label; pods are owned by workloads, everything else by the service.

        An evicted pod stays as a record, Failed, for as long as the cluster cares to keep it; it is nobody's worker.
        """
        pods = [
            item for item in items if text_at(item, "kind") == "Pod" and text_at(item, "status", "phase") not in _ENDED
        ]
        others = [item for item in items if text_at(item, "kind") != "Pod" and is_ours(item, service)]
        return cls({ref_of(item): item for item in others}, pods, workers)

    def joined(self, service: Service, items: Sequence[Object]) -> Observed:
        """With more objects, as far as they are the service's."""
        more = {ref_of(item): item for item in items if is_ours(item, service)}
        return replace(self, objects={**self.objects, **more})

    def hearing(self, other: Observed) -> Observed:
        """With what workers had told when `other` was seen, and what was made of it."""
        told = replace(self, workers=other.workers, fetching=other.fetching, waiting=other.waiting)
        return replace(told, scaled=other.scaled)

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
                    proven=ready > 0 or text_at(record, "metadata", "annotations", PROVEN) == "true",
                    order=int_at(record, "revision"),
                )
            )
        return groups


def container_statuses(pod: Object) -> list[Object]:
    """Init containers first, as they run first."""
    found = [*list_at(pod, "status", "initContainerStatuses"), *list_at(pod, "status", "containerStatuses")]
    return [item for item in found if isinstance(item, Mapping)]
