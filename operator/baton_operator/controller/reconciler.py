"""One round for one service: read everything, plan, carry the plan out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from pydantic import ValidationError

from baton_operator.controller.api_server import ApiServer
from baton_operator.controller.autoscalers import Autoscalers
from baton_operator.controller.credentials import with_credentials
from baton_operator.controller.memory import Applied
from baton_operator.controller.reports import Reports
from baton_operator.controller.resources import EVENTS, SERVICES, resource_of, served
from baton_operator.controller.rollouts import Rollouts
from baton_operator.errors import Conflict, NotFound, Refused
from baton_operator.planner import FIELD_MANAGER, FINALIZER, Context, Event, Observed, Plan, Service, Settings, plan
from baton_operator.planner.context import INSTANCE
from baton_operator.planner.objects import Object, Ref, list_at, ref_of, text_at

log = logging.getLogger(__name__)

Key = tuple[str, str]  # namespace and name of a service


class Reconciler:
    """Remembers nothing that it could not do without; `settings` may be replaced between rounds."""

    def __init__(self, api: ApiServer, reports: Reports, rollouts: Rollouts, settings: Settings) -> None:
        self.settings = settings
        self._api = api
        self._reports = reports
        self._rollouts = rollouts
        self._applied = Applied()
        self._autoscalers = Autoscalers()

    async def round(self, key: Key) -> float | None:
        """Bring `key` nearer to its manifest; how many seconds from now to look again, if not earlier.

        Raises `Refused`, after everything else was done, when an object was not taken.
        """
        namespace, name = key
        try:
            item = await self._api.get(SERVICES, namespace, name)
        except NotFound:
            self._applied.forget(key)
            self._autoscalers.forget(key)
            self._rollouts.forget(key)
            return None
        try:
            service = Service.from_object(item)
        except ValidationError as error:
            await self._misfit(item, error)
            return None
        observed = await self._observe(service, key)
        made = plan(service, observed, datetime.now(UTC), self.settings)
        refused = await self._change_objects(key, item, made, observed)
        if refused:
            observed = replace(observed, refused=refused)
            made = plan(service, observed, datetime.now(UTC), self.settings)
        await self._report(item, made)
        context = Context(service, self.settings)
        if made.assignments is not None:  # only what the status has on record: the next operator goes on from there
            await self._reports.assign(context, observed, made.assignments)
        self._rollouts.probe(key, context, observed, made)
        if refused:  # soon again: some refusals pass, such as those of an API server that does not know our kinds yet
            raise Refused(422, "; ".join(refused))
        waits = [wait for wait in (made.requeue_after, self._autoscalers.pause(key)) if wait is not None]
        return min(waits, default=None)

    async def _observe(self, service: Service, key: Key) -> Observed:
        namespace, name = key
        lists = [self._api.list(resource, namespace, {INSTANCE: name}) for resource in served(self.settings.apis)]
        items = [item for found in await asyncio.gather(*lists) for item in found]
        observed = Observed.of(service, items)
        context = Context(service, self.settings)
        if service.deleted_at is None:
            observed = await with_credentials(self._api, context, observed, datetime.now(UTC))
        listing = await self._reports.of(context, observed)
        if listing is None:
            return await self._rollouts.look(key, context, observed)
        told = {"workers": listing.workers, "fetching": listing.fetching, "waiting": listing.waiting}
        observed = replace(observed, **told)
        observed = replace(observed, scaled=self._autoscalers.ask(key, context, observed))
        return await self._rollouts.look(key, context, observed)

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
