"""The status: counts, and conditions that `kubectl wait`, kstatus and Argo CD understand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import isclose
from typing import Literal

from baton_operator.api.status import (
    Condition,
    DownloadStatus,
    FlipStatus,
    LinkStatus,
    RoleStatus,
    Status,
    WeightVersion,
)
from baton_operator.planner.bootstrap import COMPONENT as BOOTSTRAP
from baton_operator.planner.context import COMPONENT, Context
from baton_operator.planner.gateway import COMPONENT as GATEWAY
from baton_operator.planner.gateway import endpoint_url
from baton_operator.planner.objects import int_at, label
from baton_operator.planner.observed import Group, Observed, key_of
from baton_operator.planner.revision import RoleRevision
from baton_operator.planner.rollout import Rollout
from baton_operator.planner.trouble import Trouble
from baton_operator.rollout import WHOLE

MAX_MESSAGE = 1024
MAX_LINKS = 64
_RATE_TOLERANCE = 0.2


@dataclass(frozen=True)
class Finding:
    """A condition before it has times."""

    type: str
    holds: bool
    reason: str
    message: str


@dataclass(frozen=True)
class Situation:
    """What conditions are found from; `overdue` when the new revision takes longer than rollout.progressSeconds."""

    rollout: Rollout
    observed: Observed
    troubles: Sequence[Trouble]
    overdue: bool = False

    @property
    def current(self) -> Sequence[RoleRevision]:
        return self.rollout.current

    @property
    def desired(self) -> Mapping[str, int]:
        return self.rollout.desired

    def ready(self, revision: RoleRevision) -> int:
        """Workers of a role that serve the revision which all are led to."""
        role = WHOLE if revision.whole else revision.role
        return sum(one.ready and (one.role, one.version) == (role, self.rollout.goal) for one in self.rollout.workers)

    @property
    def pairs(self) -> int:
        """Prefill and decode workers of it that can pair up; workers, where they serve whole."""
        return min(self.ready(revision) for revision in self.current)

    def running(self, component: str) -> int:
        """Ready pods of the gateway, or of the bootstrap server."""
        deployments = [item for item in self.observed.of_kind("Deployment") if label(item, COMPONENT) == component]
        return sum(int_at(item, "status", "readyReplicas") for item in deployments)

    @property
    def old(self) -> list[Group]:
        """Workloads that are on their way out."""
        wanted = {key_of(revision) for revision in self.current}
        staying = wanted | {key for key, count in self.rollout.replicas.items() if count}
        return [group for group in self.observed.groups() if key_of(group) not in staying]


def build_status(context: Context, situation: Situation, now: datetime) -> Status:
    """The whole status; conditions keep the time of their last change."""
    version = situation.current[-1].version
    roles = {revision.role: _role(situation, revision) for revision in situation.current}
    return Status(
        observed_generation=context.service.generation,
        conditions=timed(context, findings(situation), now),
        url=endpoint_url(context),
        version=version,
        ready_pairs=situation.pairs,
        prefill=roles.get("prefill"),
        decode=roles.get("decode"),
        weights=_weights(context, situation.observed),
        download=_download(situation.observed),
        links=_links(context, situation.observed),
        rollout=situation.rollout.status,
        flips=[FlipStatus(name=name, role=role) for name, role in sorted(situation.rollout.flips.items())],
    )


def stalled_status(context: Context, reason: str, message: str, now: datetime) -> Status:
    """What was found before, and why nothing will change."""
    status = context.service.status
    before = {condition.type: condition for condition in status.conditions}
    available = before.get("Available")
    stalled = [
        Finding("Available", available is not None and available.status == "True", reason, message),
        Finding("Ready", False, reason, message),
        Finding("Progressing", False, reason, message),
        Finding("Degraded", True, reason, message),
        Finding("Stalled", True, reason, message),
    ]
    conditions = timed(context, stalled, now)
    return status.model_copy(update={"observed_generation": context.service.generation, "conditions": conditions})


def findings(situation: Situation) -> list[Finding]:
    """The five conditions, each with one sentence."""
    waiting = _waiting(situation)
    ready = not waiting
    asleep = not any(situation.desired.values())
    pairs = sum(situation.rollout.serving.values())
    available = pairs > 0 and situation.running(GATEWAY) > 0
    ready_reason = "ScaledToZero" if asleep and ready else "AllReady" if ready else "NotReady"
    ready_text = "all is as the manifest says" if ready else "; ".join(waiting)
    available_text = "requests are answered" if available else _why_unavailable(situation, pairs)
    failed = situation.rollout.status.phase == "Failed"
    old = sum(group.present for group in situation.old)
    progressing = not failed and (bool(waiting) or bool(situation.old))
    progress_text = ready_text if waiting else f"{old} workers of earlier revisions are leaving"
    trouble = _trouble(situation)
    stalled = ("RolledBack", _rolled_back(situation)) if failed else ("AsExpected", "the operator goes on by itself")
    return [
        Finding("Available", available, "Serving" if available else "NotServing", available_text),
        Finding("Ready", ready, ready_reason, ready_text),
        Finding("Progressing", progressing, "RollingOut" if progressing else ready_reason, progress_text)
        if progressing
        else Finding("Progressing", False, ready_reason, "nothing is under way"),
        Finding("Degraded", trouble is not None, *(_words(trouble) or ("AsExpected", "nothing is in the way"))),
        Finding("Stalled", failed, *stalled),
    ]


def timed(context: Context, found: Sequence[Finding], now: datetime) -> list[Condition]:
    before = {condition.type: condition for condition in context.service.status.conditions}
    return [_timed(finding, before.get(finding.type), context.service.generation, now) for finding in found]


def _timed(finding: Finding, before: Condition | None, generation: int, now: datetime) -> Condition:
    status: Literal["True", "False"] = "True" if finding.holds else "False"
    same = before is not None and before.status == status
    return Condition(
        type=finding.type,
        status=status,
        reason=finding.reason,
        message=_cut(finding.message),
        last_transition_time=before.last_transition_time if before and same else f"{now:%Y-%m-%dT%H:%M:%SZ}",
        observed_generation=generation,
    )


def _waiting(situation: Situation) -> list[str]:
    """What is not yet as the manifest says."""
    rollout = situation.rollout.status
    waiting = []
    if rollout.phase == "Failed":
        waiting.append(_rolled_back(situation))
    elif rollout.phase != "Done":
        waiting.append(f"{rollout.phase}: {rollout.message}")
    for revision in situation.current:
        wanted, ready = situation.desired[revision.role], situation.ready(revision)
        if ready < wanted:
            waiting.append(f"{ready} of {wanted} {revision.role} workers of revision {revision.revision} are ready")
    for component in (GATEWAY, BOOTSTRAP):
        if situation.running(component) == 0:
            waiting.append(f"the {component} is not up")
    return waiting


def _rolled_back(situation: Situation) -> str:
    rollout = situation.rollout.status
    return f"{rollout.failed} was rolled back to {rollout.stable}: {rollout.reason}; change the manifest to go on"


def _why_unavailable(situation: Situation, pairs: int) -> str:
    if not any(situation.desired.values()):
        return "scaled to zero"
    return "no prefill and decode worker of the same version are ready" if pairs == 0 else "the gateway is not up"


def _trouble(situation: Situation) -> Trouble | None:
    if situation.rollout.status.phase in ("RollingBack", "Failed"):
        return Trouble("RolledBack", _rolled_back(situation))
    if situation.troubles:
        first = situation.troubles[0]
        more = len(situation.troubles) - 1
        return Trouble(first.reason, first.sentence + (f" (and {more} more)" if more else ""))
    if situation.overdue:
        return Trouble("ProgressDeadlineExceeded", "new workers were not ready within rollout.progressSeconds")
    return None


def _words(trouble: Trouble | None) -> tuple[str, str] | None:
    return None if trouble is None else (trouble.reason, trouble.sentence)


def _role(situation: Situation, revision: RoleRevision) -> RoleStatus:
    name, rollout = WHOLE if revision.whole else revision.role, situation.rollout
    old = [1 for one in rollout.workers if one.role == name and one.version != rollout.goal]
    old += [group.present for group in situation.old if group.role == revision.role and not group.wanted]
    return RoleStatus(
        desired=situation.desired[revision.role],
        ready=situation.ready(revision),
        old=sum(old),
        revision=revision.revision,
    )


def _weights(context: Context, observed: Observed) -> list[WeightVersion]:
    """As reported, or as reported last where nobody can be asked now."""
    if observed.workers is None:
        return list(context.service.status.weights)
    counts = Counter(report.weights for report in observed.workers if report.weights)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [WeightVersion(digest=digest, workers=count) for digest, count in ranked[:16]]


def _download(observed: Observed) -> DownloadStatus | None:
    known = [report for report in observed.fetching if report.total]
    if not observed.fetching:
        return None
    percent = 100 * sum(one.done for one in known) // max(1, sum(one.total for one in known))
    return DownloadStatus(pods=len(observed.fetching), percent=min(100, percent))


def _links(context: Context, observed: Observed) -> list[LinkStatus]:
    """Rates waver: one that is much like what the status says is not told again."""
    before = {(link.decode, link.prefill): link for link in context.service.status.links}
    if observed.workers is None:
        return list(before.values())
    names = {report.id for report in observed.workers}
    found = [
        LinkStatus(prefill=sender, decode=report.id, gigabytes_per_second=float(f"{rate / 1e9:.3g}"))
        for report in sorted(observed.workers, key=lambda report: report.id)
        for sender, rate in sorted(report.links.items())
        if sender in names
    ]
    return [_steady(link, before.get((link.decode, link.prefill))) for link in found[:MAX_LINKS]]


def _steady(link: LinkStatus, before: LinkStatus | None) -> LinkStatus:
    same = before is not None and isclose(
        before.gigabytes_per_second, link.gigabytes_per_second, rel_tol=_RATE_TOLERANCE
    )
    return before if before is not None and same else link


def _cut(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 1]}…"
