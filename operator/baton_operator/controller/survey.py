"""All services with their children at once, as a resync sees them: a list per kind, instead of one per service."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from baton_operator.controller.api_server import ApiServer
from baton_operator.controller.resources import SERVICES, served
from baton_operator.planner.context import INSTANCE
from baton_operator.planner.objects import Object, label, text_at

Key = tuple[str, str]  # namespace and name of a service


@dataclass(frozen=True)
class Sighting:
    """A service and its children; a few seconds later it is good for telling that nothing is to be done, no more."""

    item: Object
    children: list[Object] = field(default_factory=list)


async def survey(api: ApiServer, namespaces: Sequence[str], apis: Iterable[str]) -> Mapping[Key, Sighting]:
    """Every service in `namespaces`, or in all, in the API server's order."""
    places: Sequence[str | None] = namespaces or [None]
    services = [item for place in places for item in await api.list(SERVICES, place, {})]
    found = {
        (text_at(item, "metadata", "namespace"), text_at(item, "metadata", "name")): Sighting(item) for item in services
    }
    for resource in served(apis):
        for place in places:
            for child in await api.list(resource, place, {INSTANCE: ""}):
                sighting = found.get((text_at(child, "metadata", "namespace"), label(child, INSTANCE)))
                if sighting is not None:
                    sighting.children.append(child)
    return found
