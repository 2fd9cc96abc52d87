"""How many workers each role wants now, and the WorkerScalers that hold it: for autoscalers, and over restarts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from baton_operator.api.fields import API_VERSION
from baton_operator.planner.context import Context
from baton_operator.planner.objects import Object, Ref, int_at, value_at
from baton_operator.planner.observed import Group, Observed
from baton_operator.planner.revision import RoleRevision
from baton_operator.planner.worker import role_of


def scaler_ref(context: Context, role: str) -> Ref:
    return Ref(API_VERSION, "WorkerScaler", context.child_name(role))


def desired_replicas(context: Context, current: Sequence[RoleRevision], observed: Observed) -> dict[str, int]:
    """By role: the manifest's number, or within its bounds what autoscaling says: our own, or the role's WorkerScaler.

    A service that is to answer at all keeps a worker of both roles, whatever two autoscalers say: with either at zero
    the other could not serve, so it stands still at zero too only when both agree.
    """
    desired = {revision.role: _desired(context, revision.role, observed) for revision in current}
    if any(desired.values()):
        desired = {role: max(1, count) for role, count in desired.items()}
    return desired


def _desired(context: Context, name: str, observed: Observed) -> int:
    role = role_of(context, name)
    if role.autoscaling is None:
        return role.replicas
    scaler = observed.objects.get(scaler_ref(context, name))
    own = observed.scaled.get(name) if role.autoscaling.driver == "operator" else None
    asked = value_at(scaler, "spec", "replicas") if own is None else own
    count = asked if isinstance(asked, int) else role.replicas
    return min(max(count, role.autoscaling.min_replicas), role.autoscaling.max_replicas)


def build_scalers(
    context: Context, current: Sequence[RoleRevision], desired: Mapping[str, int], driver: str
) -> Iterator[dict[str, object]]:
    """Those that `driver` drives. Where that is not the operator they are to be made once, and left to it."""
    for revision in current:
        role = role_of(context, revision.role)
        if role.autoscaling is not None and role.autoscaling.driver == driver:
            ref = scaler_ref(context, revision.role)
            count = desired[revision.role] if driver == "operator" else role.replicas
            yield context.child(ref.api_version, ref.kind, ref.name, revision.role, {"spec": {"replicas": count}})


def scaler_status(
    context: Context, role: str, groups: Sequence[Group], flips: Mapping[str, str]
) -> Mapping[str, object]:
    """Workers in the role, with those that have taken it from the other; the selector finds those started for it."""
    taken = sum(1 if now == role else -1 for now in flips.values())
    selector = ",".join(f"{key}={value}" for key, value in context.selector(role).items())
    count = sum(group.present for group in groups if group.role == role) + taken
    return {"replicas": max(0, count), "selector": selector}


def changed(scaler: Object, status: Mapping[str, object]) -> bool:
    """Whether `scaler` has another status than this one."""
    return (int_at(scaler, "status", "replicas"), value_at(scaler, "status", "selector")) != (
        status["replicas"],
        status["selector"],
    )
