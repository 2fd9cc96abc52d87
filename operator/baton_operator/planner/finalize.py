"""The end of a service: the gateway goes first and lets its open streams end, then the workers, then the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from baton_operator.planner.context import COMPONENT, Context
from baton_operator.planner.gateway import COMPONENT as GATEWAY
from baton_operator.planner.objects import Ref, label, ref_of, text_at
from baton_operator.planner.observed import Key, Observed, key_of

_SLACK = 60.0  # for what the API server and the kubelet take besides draining


@dataclass(frozen=True)
class Finalization:
    """One step; with `release` the finalizer goes, and the owner references take everything else with them."""

    release: bool = False
    delete: tuple[Ref, ...] = ()
    replicas: Mapping[Key, int] = field(default_factory=dict)
    requeue_after: float | None = None


def finalize(context: Context, observed: Observed, deleted_at: datetime, now: datetime) -> Finalization:
    """The next step; after a bound of twice rollout.drainSeconds the service goes whatever still runs."""
    bound = deleted_at + timedelta(seconds=2 * context.manifest.spec.rollout.drain_seconds + _SLACK)
    if now >= bound:
        return Finalization(release=True)
    wait = (bound - now).total_seconds()
    deployments = [item for item in observed.of_kind("Deployment") if label(item, COMPONENT) == GATEWAY]
    if deployments or _pods(observed, GATEWAY):
        leaving = [item for item in deployments if not text_at(item, "metadata", "deletionTimestamp")]
        return Finalization(delete=tuple(ref_of(item) for item in leaving), requeue_after=wait)
    groups = observed.groups()
    if any(group.present or group.wanted for group in groups):
        return Finalization(replicas={key_of(group): 0 for group in groups}, requeue_after=wait)
    return Finalization(release=True)


def _pods(observed: Observed, component: str) -> int:
    return sum(label(pod, COMPONENT) == component for pod in observed.pods)
