"""The operator's own autoscaling, service by service: what it was told last, and what it asks for now."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from baton_operator.autoscaling import PERIOD, Bounds, Fleet, Memory, Targets, decide
from baton_operator.controller.survey import Key
from baton_operator.planner import Context, Observed
from baton_operator.planner.revision import wanted_revisions
from baton_operator.planner.scaling import desired_replicas
from baton_operator.planner.worker import role_of

log = logging.getLogger(__name__)


class Autoscalers:
    """Remembers what `decide` wants remembered. A new process looks on for a while before it takes workers away."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._memories: dict[Key, Memory] = {}

    def forget(self, key: Key) -> None:
        self._memories.pop(key, None)

    def ask(self, key: Key, context: Context, observed: Observed) -> Mapping[str, int]:
        """Workers by role; nothing where it has no say, or where nobody could be asked for the workers."""
        bounds = _bounds(context)
        if not bounds:
            self.forget(key)
        if not bounds or observed.workers is None:
            return {}
        current = wanted_revisions(context.manifest.spec)
        wanted = desired_replicas(context, current, observed)
        names = {(revision.role, revision.revision) for revision in current}
        settled = all((group.role, group.revision) in names for group in observed.groups())
        fleet = Fleet(wanted, observed.workers, observed.waiting, settled)
        decision, memory = decide(self._memories.get(key, Memory()), fleet, _targets(context), bounds, self._clock())
        self._memories[key] = memory
        for role, reason in decision.reasons.items():
            log.info("%s/%s: %d %s workers instead of %d: %s", *key, decision.wanted[role], role, wanted[role], reason)
        return {role: decision.wanted[role] for role in bounds}

    def pause(self, key: Key) -> float | None:
        """Seconds until the service is to be looked at again; None when it does not scale itself."""
        return PERIOD if key in self._memories else None


def _bounds(context: Context) -> dict[str, Bounds]:
    found = {}
    for revision in wanted_revisions(context.manifest.spec):
        scaling = role_of(context, revision.role).autoscaling
        if scaling is not None and scaling.driver == "operator":
            found[revision.role] = Bounds(scaling.min_replicas, scaling.max_replicas)
    return found


def _targets(context: Context) -> Targets:
    given = context.manifest.spec.scaling
    return Targets(
        ttft=given.ttft_milliseconds / 1000,
        tpot=given.tpot_milliseconds / 1000,
        pages=given.page_percent / 100,
        lead=given.lead_seconds,
        shrink=given.shrink_seconds,
        idle=given.idle_seconds,
        ratio=(given.min_prefill_percent / 100, given.max_prefill_percent / 100),
        flip=given.role_flip,
    )
