"""The planner: what the cluster should hold, from what was asked and what is there.

Pure, level-based and idempotent. It remembers nothing: whatever it has to know later stands in the objects themselves
(ControllerRevisions, the status), so it may be stopped between any two of its plan's steps and started again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from baton_operator.api.fields import cluster_problems
from baton_operator.api.status import Status
from baton_operator.planner.bootstrap import build_bootstrap
from baton_operator.planner.context import COMPONENT, FINALIZER, LEADER_WORKER_SET, REVISION, Context, Service, Settings
from baton_operator.planner.finalize import Finalization, finalize
from baton_operator.planner.gateway import GATEWAY_API, build_gateway
from baton_operator.planner.objects import Object, Ref, label, ref_of, text_at
from baton_operator.planner.observed import Observed, key_of
from baton_operator.planner.records import Records
from baton_operator.planner.revision import RoleRevision, wanted_revisions
from baton_operator.planner.rollout import Rollout, plan_rollout
from baton_operator.planner.scaling import build_scalers, changed, scaler_ref, scaler_status
from baton_operator.planner.shared import (
    POD_MONITOR,
    build_account,
    build_budgets,
    build_network_policies,
    build_pod_monitor,
)
from baton_operator.planner.status import Situation, build_status, stalled_status
from baton_operator.planner.trouble import Trouble, troubles
from baton_operator.planner.worker import role_of

_LOOK_FETCHING: Final = 10.0  # seconds between two looks while a model is fetched


@dataclass(frozen=True)
class Event:
    """Something that a person may want to know when it happens."""

    warning: bool
    reason: str
    message: str


@dataclass(frozen=True)
class Plan:
    """What to do, in this order: finalizers, apply, delete, statuses, assignments, events; then again after
    `requeue_after` seconds.

    `apply` is for server-side apply under `FIELD_MANAGER`, `create` only for what does not exist. `finalizers` and
    `status` are None when they are to stay as they are. `assignments` say by worker what it is to serve, None when
    nobody could tell them; of the revision `probe` one of the workers `probed` is to be asked the probe.
    """

    apply: tuple[Object, ...] = ()
    create: tuple[Object, ...] = ()
    delete: tuple[Ref, ...] = ()
    status: Status | None = None
    scaler_statuses: Mapping[Ref, Mapping[str, object]] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    finalizers: tuple[str, ...] | None = None
    requeue_after: float | None = None
    assignments: Mapping[str, Mapping[str, object]] | None = None
    probe: str = ""
    probed: Sequence[str] = ()


def plan(service: Service, observed: Observed, now: datetime, settings: Settings | None = None) -> Plan:
    """The next steps for one service."""
    context = Context(service, settings or Settings())
    if service.deleted_at is not None:
        return _finalization(context, observed, service.deleted_at, now)
    obstacle = _obstacle(context, observed)
    if obstacle is not None:
        status = stalled_status(context, obstacle.reason, obstacle.sentence, now)
        return Plan(status=_if_changed(context, status), events=_events(context, status))
    return _reconcile(context, observed, now)


def _reconcile(context: Context, observed: Observed, now: datetime) -> Plan:
    records = Records(context, observed, wanted_revisions(context.manifest.spec))
    rollout = plan_rollout(context, observed, records, now)
    budgeted = {key_of(item): item for item in [*rollout.current, *_running(observed)]}
    apply: list[Object] = [
        build_account(context),
        *(observed.secrets or ()),
        *build_network_policies(context),
        *build_bootstrap(context),
        *build_gateway(context),
        *build_budgets(context, (item for key, item in budgeted.items() if key in rollout.replicas)),
        *build_pod_monitor(context),
        *records.objects(rollout.records, rollout.proven, rollout.weights),
        *records.workloads(rollout.replicas),
        *build_scalers(context, rollout.current, rollout.desired, "operator"),
    ]
    scalers = list(build_scalers(context, rollout.current, rollout.desired, "external"))
    kept = {ref_of(item) for item in [*apply, *scalers]}
    deadline = _deadline(context, observed, rollout.current)
    overdue = deadline is not None and now >= deadline
    found = [*troubles(observed), *_missing_apis(context)]
    status = build_status(context, Situation(rollout, observed, found, overdue), now)
    pending = any(condition.type == "Ready" and condition.status == "False" for condition in status.conditions)
    wait = (deadline - now).total_seconds() if deadline is not None and pending and not overdue else None
    waits = (wait, rollout.requeue_after, _LOOK_FETCHING if observed.fetching else None)
    return Plan(
        apply=tuple(apply),
        create=tuple(item for item in scalers if ref_of(item) not in observed.objects),
        delete=tuple(ref for ref, item in sorted(observed.objects.items()) if ref not in kept and not _leaving(item)),
        status=_if_changed(context, status),
        scaler_statuses=dict(_scaler_statuses(context, rollout, observed)),
        events=(*_events(context, status), *_story(context, rollout)),
        finalizers=None if FINALIZER in context.service.finalizers else (*context.service.finalizers, FINALIZER),
        requeue_after=min((each for each in waits if each is not None), default=None),
        assignments=rollout.assignments,
        probe=rollout.probe,
        probed=rollout.probed,
    )


def _finalization(context: Context, observed: Observed, deleted_at: datetime, now: datetime) -> Plan:
    if FINALIZER not in context.service.finalizers:
        return Plan()
    step: Finalization = finalize(context, observed, deleted_at, now)
    records = Records(context, observed, ())
    finalizers = tuple(name for name in context.service.finalizers if name != FINALIZER) if step.release else None
    return Plan(
        apply=tuple(records.workloads(step.replicas)),
        delete=step.delete,
        finalizers=finalizers,
        requeue_after=step.requeue_after,
    )


def _obstacle(context: Context, observed: Observed) -> Trouble | None:
    """What keeps the planner from doing anything sensible."""
    problems = list(cluster_problems(context.manifest.spec, "spec"))
    if problems:
        return Trouble("InvalidSpec", "; ".join(problems))
    roles = [revision.role for revision in wanted_revisions(context.manifest.spec)]
    spans = [role for role in roles if role_of(context, role).parallelism.nodes > 1]
    if spans and LEADER_WORKER_SET not in context.settings.apis:
        sentence = (
            f"{spans[0]} workers span nodes, which takes LeaderWorkerSet; install it or write parallelism.nodes: 1"
        )
        return Trouble("LeaderWorkerSetMissing", sentence)
    if observed.secrets is None:
        sentence = (
            "security.mutualTls takes Secrets, which the operator may not read or write here; "
            "install its chart with secrets: true"
        )
        return Trouble("SecretsForbidden", sentence)
    return None


def _missing_apis(context: Context) -> Iterator[Trouble]:
    spec, apis = context.manifest.spec, context.settings.apis
    if spec.gateway.route is not None and GATEWAY_API not in apis:
        yield Trouble("GatewayApiMissing", "gateway.route is set, but the cluster has no Gateway API; install it")
    if spec.metrics.pod_monitor and POD_MONITOR not in apis:
        yield Trouble("PodMonitorMissing", "metrics.podMonitor is set, but the cluster has no Prometheus operator")


def _running(observed: Observed) -> Iterator[RoleRevision]:
    for group in observed.groups():
        yield RoleRevision(group.role, group.revision, group.version, group.whole)


def _deadline(context: Context, observed: Observed, current: Sequence[RoleRevision]) -> datetime | None:
    """When the newest of the wanted revisions should have become ready."""
    keys = {key_of(revision) for revision in current}
    times = [
        datetime.fromisoformat(text_at(item, "metadata", "creationTimestamp"))
        for item in observed.records()
        if (label(item, COMPONENT), label(item, REVISION)) in keys and text_at(item, "metadata", "creationTimestamp")
    ]
    return max(times) + timedelta(seconds=context.manifest.spec.rollout.progress_seconds) if times else None


def _scaler_statuses(
    context: Context, rollout: Rollout, observed: Observed
) -> Iterator[tuple[Ref, Mapping[str, object]]]:
    for revision in rollout.current:
        ref = scaler_ref(context, revision.role)
        scaler = observed.objects.get(ref)
        if scaler is not None and role_of(context, revision.role).autoscaling is not None:
            status = scaler_status(context, revision.role, observed.groups(), rollout.flips)
            if changed(scaler, status):
                yield ref, status


def _if_changed(context: Context, status: Status) -> Status | None:
    return None if status == context.service.status else status


def _events(context: Context, status: Status) -> tuple[Event, ...]:
    """One for each condition that changed its mind, but not for what merely begins as it should."""
    before = {item.type: (item.status, item.reason) for item in context.service.status.conditions}
    calm = {("Available", "False"), ("Ready", "False"), ("Degraded", "False"), ("Stalled", "False")}
    return tuple(
        Event(item.status == "True" and item.type in ("Degraded", "Stalled"), item.reason, item.message)
        for item in status.conditions
        if before.get(item.type) != (item.status, item.reason)
        and (item.type in before or (item.type, item.status) not in calm)
    )


def _story(context: Context, rollout: Rollout) -> Iterator[Event]:
    """An event for each step of a rollout: another phase, or another sentence, numbers aside."""
    before, now = context.service.status.rollout, rollout.status
    if before is None:
        return
    steps = [(one.phase, one.failed, re.sub(r"[0-9.]+ s", "", one.message)) for one in (before, now)]
    if steps[0] != steps[1]:
        message = now.message or f"{now.version} serves"
        yield Event(now.phase in ("RollingBack", "Failed"), f"Rollout{now.phase}", message)


def _leaving(item: Object) -> bool:
    return bool(text_at(item, "metadata", "deletionTimestamp"))
