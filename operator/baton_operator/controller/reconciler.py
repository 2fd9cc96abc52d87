"""One round for one service: read everything, plan, carry the plan out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pydantic import ValidationError

from baton_operator.controller.api_server import ApiServer
from baton_operator.controller.autoscalers import Autoscalers
from baton_operator.controller.credentials import with_credentials
from baton_operator.controller.memory import Applied
from baton_operator.controller.reports import Reports
from baton_operator.controller.resources import EVENTS, SERVICES, resource_of, served
from baton_operator.controller.rollouts import Rollouts
from baton_operator.controller.survey import Key, Sighting
from baton_operator.errors import Conflict, NotFound, Refused
from baton_operator.planner import FIELD_MANAGER, FINALIZER, Context, Event, Observed, Plan, Service, Settings, plan
from baton_operator.planner.context import INSTANCE
from baton_operator.planner.objects import Object, Ref, list_at, ref_of, text_at

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Seen:
    """One look at a service: what there is, and what the plan makes of it."""

    context: Context
    observed: Observed
    made: Plan


class Reconciler:
    """Remembers nothing that it could not do without; `settings` may be replaced between rounds."""

    def __init__(self, api: ApiServer, reports: Reports, rollouts: Rollouts, settings: Settings) -> None:
        self.settings = settings
        self._api = api
        self._reports = reports
        self._rollouts = rollouts
        self._applied = Applied()
        self._autoscalers = Autoscalers()

    async def round(self, key: Key, sighting: Sighting | None = None) -> float | None:
        """Bring `key` nearer to its manifest; how many seconds from now to look again, if not earlier.

        What a resync saw of it may tell that there is nothing to do; else everything is read anew. Raises `Refused`,
        after everything else was done, when an object was not taken.
        """
        glance = None if sighting is None else await self._look(key, sighting.item, sighting.children)
        if glance is not None and self._rests(key, glance):
            return await self._conclude(key, glance)
        try:
            item = await self._api.get(SERVICES, *key)
        except NotFound:
            self._forget(key)
            return None
        seen = await self._look(key, item, glance=glance)
        if seen is None:
            return None
        refused = await self._change_objects(key, item, seen.made, seen.observed)
        if refused:
            observed = replace(seen.observed, refused=refused)
            made = plan(seen.context.service, observed, datetime.now(UTC), self.settings)
            seen = replace(seen, observed=observed, made=made)
        await self._report(item, seen.made)
        wait = await self._conclude(key, seen)
        if refused:  # soon again: some refusals pass, such as those of an API server that does not know our kinds yet
            raise Refused(422, "; ".join(refused))
        return wait

    def _forget(self, key: Key) -> None:
        self._applied.forget(key)
        self._autoscalers.forget(key)
        self._rollouts.forget(key)

    async def _look(
        self, key: Key, item: Object, children: Sequence[Object] | None = None, glance: _Seen | None = None
    ) -> _Seen | None:
        """The service as it is, and what to do; None for a manifest that cannot be read. What workers have told during
        this round stands in `glance`."""
        try:
            service = Service.from_object(item)
        except ValidationError as error:
            if children is None:
                await self._misfit(item, error)
            return None
        context = Context(service, self.settings)
        if children is None:
            lists = [self._api.list(resource, key[0], {INSTANCE: key[1]}) for resource in served(self.settings.apis)]
            children = [child for found in await asyncio.gather(*lists) for child in found]
        observed = Observed.of(service, children)
        if service.deleted_at is None:
            observed = await with_credentials(self._api, context, observed, datetime.now(UTC))
        observed = await self._told(key, context, observed) if glance is None else observed.hearing(glance.observed)
        observed = await self._rollouts.look(key, context, observed)
        return _Seen(context, observed, plan(service, observed, datetime.now(UTC), self.settings))

    async def _told(self, key: Key, context: Context, observed: Observed) -> Observed:
        """What workers report, and what the autoscaler, which decides once a round, makes of it."""
        listing = await self._reports.of(context, observed)
        if listing is None:
            return observed
        workers, fetching, waiting = listing.workers, listing.fetching, listing.waiting
        observed = replace(observed, workers=workers, fetching=fetching, waiting=waiting)
        return replace(observed, scaled=self._autoscalers.ask(key, context, observed))

    def _rests(self, key: Key, seen: _Seen) -> bool:
        """Whether the plan changes nothing."""
        made, objects = seen.made, seen.observed.objects
        told = made.status is not None or made.scaler_statuses or made.events
        changes = told or made.create or made.delete or made.finalizers is not None or made.probe
        return not changes and all(self._applied.stands(key, item, objects.get(ref_of(item))) for item in made.apply)

    async def _conclude(self, key: Key, seen: _Seen) -> float | None:
        """What is not kept by the API server; when to look again."""
        # Only what the status has on record: the next operator goes on from there.
        if seen.made.assignments is not None:
            await self._reports.assign(seen.context, seen.observed, seen.made.assignments)
        self._rollouts.probe(key, seen.context, seen.observed, seen.made)
        waits = [wait for wait in (seen.made.requeue_after, self._autoscalers.pause(key)) if wait is not None]
        return min(waits, default=None)

    async def _change_objects(self, key: Key, item: Object, made: Plan, observed: Observed) -> Sequence[str]:
        """Finalizers, applies, deletions, in this order; what the API server would not take."""
        releasing = made.finalizers is not None and FINALIZER not in made.finalizers
        if made.finalizers is not None and not releasing:
            await self._api.patch_metadata(SERVICES, item, {"finalizers": list(made.finalizers)})
        refused: list[str] = []
        for wanted in made.apply:
            live = observed.objects.get(ref_of(wanted))
            if not self._applied.stands(key, wanted, live):
                refused += await self._apply(key, wanted)
        for wanted in made.create:
            await self._create(wanted)
        for ref in made.delete:
            await self._delete(ref, observed.objects[ref])
        if releasing:
            await self._api.patch_metadata(SERVICES, item, {"finalizers": list(made.finalizers or ())})
        return refused

    async def _apply(self, key: Key, wanted: Object) -> list[str]:
        try:
            self._applied.remember(key, wanted, await self._api.apply(wanted))
        except Refused as error:
            ref = ref_of(wanted)
            return [f"{ref.kind} {ref.name} is refused: {error.message}"]
        return []

    async def _create(self, wanted: Object) -> None:
        resource = resource_of(ref_of(wanted).api_version, ref_of(wanted).kind)
        try:
            await self._api.create(resource, wanted)
        except Conflict:
            log.debug("%s exists already", ref_of(wanted))

    async def _delete(self, ref: Ref, item: Object) -> None:
        try:
            await self._api.delete(resource_of(ref.api_version, ref.kind), item)
        except (NotFound, Conflict):
            log.debug("%s is gone already", ref)

    async def _report(self, item: Object, made: Plan) -> None:
        """Statuses, then events: of a round that is cut off between the two, the status tells."""
        namespace = text_at(item, "metadata", "namespace")
        for ref, status in made.scaler_statuses.items():
            await self._apply_status(ref, namespace, status)
        if made.status is not None:
            await self._apply_status(ref_of(item), namespace, made.status.to_object())
        for event in made.events:
            try:
                await self._api.create(EVENTS, _event(item, event))
            except Refused as error:
                log.warning("an event was refused: %s", error)

    async def _apply_status(self, ref: Ref, namespace: str, status: Mapping[str, object]) -> None:
        metadata = {"name": ref.name, "namespace": namespace}
        body = {"apiVersion": ref.api_version, "kind": ref.kind, "metadata": metadata, "status": status}
        try:
            await self._api.apply(body, "status")
        except NotFound:
            log.debug("%s is gone already", ref)

    async def _misfit(self, item: Object, error: ValidationError) -> None:
        """A manifest that this release cannot read, such as one for a later release: left alone, unless it goes."""
        fault = error.errors()[0]
        path = ".".join(str(part) for part in fault["loc"])
        log.error("%s cannot be read: %s: %s", ref_of(item), path, fault["msg"])
        finalizers = list_at(item, "metadata", "finalizers")
        if text_at(item, "metadata", "deletionTimestamp") and FINALIZER in finalizers:
            kept = [name for name in finalizers if name != FINALIZER]
            await self._api.patch_metadata(SERVICES, item, {"finalizers": kept})


def _event(item: Object, event: Event) -> Object:
    name, namespace = text_at(item, "metadata", "name"), text_at(item, "metadata", "namespace")
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    involved = {"apiVersion": SERVICES.api_version, "kind": SERVICES.kind, "name": name, "namespace": namespace}
    return {
        "apiVersion": EVENTS.api_version,
        "kind": EVENTS.kind,
        "metadata": {"generateName": f"{name}.", "namespace": namespace},
        "involvedObject": {**involved, "uid": text_at(item, "metadata", "uid")},
        "type": "Warning" if event.warning else "Normal",
        "reason": event.reason,
        "message": event.message[:1024],
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": FIELD_MANAGER,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
