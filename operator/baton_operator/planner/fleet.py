"""A service's workers in the rollout planner's terms: what workloads and pods say, and what the workers report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Final

from baton_operator.planner.context import COMPONENT, REVISION
from baton_operator.planner.objects import Object, int_at, label, list_at, text_at
from baton_operator.planner.observed import Group, Key, Observed, WorkerReport, container_statuses, key_of
from baton_operator.planner.records import Records, Version
from baton_operator.rollout import DECODE, PREFILL, WHOLE, Health, Seen, Stage, Worker, serving_sets
from baton_operator.rollout.health import health_of

_STAGES: Final = {
    "serving": Stage.SERVING,
    "staging": Stage.STAGING,
    "staged": Stage.STAGED,
    "holding": Stage.SWITCHING,
    "switching": Stage.SWITCHING,
    "failed": Stage.FAILED,
}
_HOPELESS = 2  # restarts after which a worker that never served counts as refused
_WORKER_INDEX = "leaderworkerset.sigs.k8s.io/worker-index"
_GROUP = "leaderworkerset.sigs.k8s.io/group-key"  # label of all pods of one worker
_SIZE = "leaderworkerset.sigs.k8s.io/size"  # annotation with their number


@dataclass(frozen=True)
class Member:
    """One worker: its pod, or a place that no pod fills yet, in the workload `key`, from which it `starts` as that
    version."""

    worker: Worker
    key: Key
    starts: str


class Fleet:
    """`versions` are those that matter now, by name, the goal first. `resting`: all are known to serve it. `flips` are
    the roles of workers that are to have another than they were started for. Workloads that are `shrinking` have more
    pods than wanted, and nobody knows yet which of them go."""

    def __init__(
        self,
        observed: Observed,
        records: Records,
        versions: Sequence[Version],
        *,
        resting: bool,
        flips: Mapping[str, str],
    ) -> None:
        self._resting = resting
        self._flips = flips
        self._observed = observed
        self._records = records
        self._versions = versions
        self._reports = {report.id: report for report in observed.workers or ()}
        self._pods: dict[Key, list[Object]] = {}
        staying = [pod for pod in observed.pods if not text_at(pod, "metadata", "deletionTimestamp")]
        self._ready_in = Counter(label(pod, _GROUP) for pod in staying if _says_ready(pod))
        for pod in staying:
            if label(pod, _WORKER_INDEX) in ("", "0"):
                self._pods.setdefault((label(pod, COMPONENT), label(pod, REVISION)), []).append(pod)
        self.members = [member for group in observed.groups() for member in self._of(group)]
        self.shrinking = {key_of(group) for group in observed.groups() if len(self._pods_of(group)) > group.wanted}

    @property
    def workers(self) -> tuple[Worker, ...]:
        return tuple(member.worker for member in self.members)

    @property
    def reporting(self) -> Set[str]:
        """Workers that the bootstrap server lists."""
        return self._reports.keys()

    def serves(self, group: Group) -> bool:
        """Whether any of its pods does, also one that may be on its way out."""
        worker = partial(
            self._worker, role=WHOLE if group.whole else group.role, starts=self._starts(group), group=group
        )
        return any(worker(pod, order=0).ready for pod in self._pods_of(group))

    def seen(self, now: float) -> Seen:
        """What the rollout is planned from."""
        by_id = {worker.id: worker for worker in self.workers}
        views = [[by_id[name] for name in gateway if name in by_id] for gateway in self._observed.gateways]
        admitted = [frozenset(serving_sets(view)) for view in views or [list(by_id.values())]]
        return Seen(self.workers, frozenset.intersection(*admitted), now, self._health())

    def _health(self) -> Mapping[str, Health]:
        counts = self._observed.counts
        return {
            name: health_of(
                (counts[one.id] for one in self.workers if one.version == name and one.id in counts),
                self._observed.probes.get(name),
            )
            for name in {worker.version for worker in self.workers}
        }

    def weights(self) -> dict[Key, str]:
        """Digests of what workers of the goal serve or have read, by the records to which they are new."""
        goal = self._versions[0]
        found = set()
        for member in self.members:
            report = self._reports.get(member.worker.id)
            if report is not None and report.revision == goal.name and report.phase == "staged":
                found.add(report.staged)
            elif report is not None and member.starts == goal.name and report.revision in ("", goal.name):
                found.add(report.weights)
        return dict.fromkeys((key_of(role) for role in goal.roles), found.pop()) if len(found) == 1 else {}

    def _of(self, group: Group) -> Iterator[Member]:
        key, starts = key_of(group), self._starts(group)
        role = WHOLE if group.whole else group.role
        pods = sorted(self._pods_of(group), key=self._likely_to_stay)
        # Of more pods than wanted any may be on its way out: count on the ready ones least.
        for order, pod in enumerate(pods[: group.wanted]):
            yield Member(self._worker(pod, role, starts, order, group), key, starts)
        ready = max(0, group.ready - max(0, group.present - group.wanted))
        for place in range(len(pods), group.wanted):
            there = not pods and place < ready and self._observed.workers is None
            serves = self._silent(group, starts)
            yield Member(Worker(f"{role}-{group.revision}/{place}", role, serves, there, order=place), key, starts)

    def _pods_of(self, group: Group) -> Sequence[Object]:
        return self._pods.get(key_of(group), ())

    def _likely_to_stay(self, pod: Object) -> tuple[bool, bool, str]:
        name = text_at(pod, "metadata", "name")
        return name not in self._flips, self._is_ready(pod), name

    def _silent(self, group: Group, starts: str) -> str:
        """What a worker serves, or will, that says nothing: it asks before it loads."""
        goal, groups = self._versions[0], {key_of(one) for one in self._observed.groups() if one.wanted}
        hosted = self._resting and not groups & {key_of(role) for role in goal.roles if role.role == group.role}
        same = hosted and self._records.settings(key_of(group)) == goal.settings.get(group.role)
        return goal.name if same else starts

    def _starts(self, group: Group) -> str:
        for version in self._versions:
            if key_of(group) in map(key_of, version.roles):
                return version.name
        return group.version

    def _worker(self, pod: Object, role: str, starts: str, order: int, group: Group) -> Worker:
        name = text_at(pod, "metadata", "name")
        role = role if role == WHOLE else self._flips.get(name, role)
        report = self._reports.get(name)
        if report is None:
            ready = self._is_ready(pod) and self._observed.workers is None
            error = "" if ready else _hopeless(pod)
            stage = Stage.FAILED if error else Stage.SERVING
            serves = self._silent(group, starts)
            return Worker(name, role, serves, ready, stage=stage, heard=starts, error=error, order=order)
        return Worker(
            id=name,
            role=role,
            version=self._serves(report, starts, key_of(group)),
            ready=self._is_ready(pod) and report.state == "ready" and _as_told(report, role),
            whole=role != WHOLE and report.role == "both",
            stage=_STAGES.get(report.phase, Stage.SERVING),
            heard=report.revision,
            digest=report.staged,
            error=report.error,
            order=order,
        )

    def _is_ready(self, pod: Object) -> bool:
        """Whether a worker can serve, of which this is the only or the leading pod: none of its pods may be missing."""
        size = text_at(pod, "metadata", "annotations", _SIZE)
        return _says_ready(pod) and (not size.isdigit() or self._ready_in[label(pod, _GROUP)] >= int(size))

    def _serves(self, report: WorkerReport, starts: str, key: Key) -> str:
        """The version of a worker: by what it was told, where its weights bear that out, or by its weights alone."""
        settings = self._records.settings(key)
        near = [v for v in self._versions if v.settings.get(key[0]) == settings and v.digest == report.weights]
        names = [version.name for version in near]
        if report.revision in names:
            return report.revision
        begun = next((version for version in self._versions if version.name == starts), None)
        if begun is not None and not begun.digest:
            return starts
        return starts if starts in names or not names else names[0]


def _as_told(report: WorkerReport, role: str) -> bool:
    """Whether the worker has taken the role that it is to have, or one that includes it."""
    return role not in (PREFILL, DECODE) or report.role not in (PREFILL, DECODE) or report.role == role


def _says_ready(pod: Object) -> bool:
    conditions = list_at(pod, "status", "conditions")
    return any(text_at(one, "type") == "Ready" and text_at(one, "status") == "True" for one in conditions)


def _hopeless(pod: Object) -> str:
    """Why a pod will never be ready, or ""."""
    for container in container_statuses(pod):
        waits = text_at(container, "state", "waiting", "reason") == "CrashLoopBackOff"
        if waits and int_at(container, "restartCount") >= _HOPELESS:
            said = text_at(container, "lastState", "terminated", "message").strip().splitlines()
            return " ".join(said[-1:]) or "its container keeps ending"
    return ""
