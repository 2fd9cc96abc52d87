"""`baton rollout COMMAND NAME -n NAMESPACE`: how a change reaches a service of a cluster; what a person says to that.

To pause is to write `spec.rollout.paused`. To promote a canary, or to undo a change, is to annotate the service with
the generation of the manifest that is meant, so that nothing said of one change holds for a later one.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping, Sequence

from kubernetes.aio.config import ConfigException
from rich.console import Console, Group
from rich.text import Text

from baton_operator.api.status import RolloutStatus
from baton_operator.cli.status import change_under_way
from baton_operator.controller.api_server import ApiServer, connected
from baton_operator.controller.resources import EVENTS, SERVICES
from baton_operator.errors import OperatorError
from baton_operator.planner import Object, Service
from baton_operator.planner.context import PROMOTED, UNDONE
from baton_operator.planner.objects import int_at, text_at

_MANAGER = "baton-cli"
_SHOWN = 12  # events
_TOLD = "Rollout"  # how the reasons of a rollout's events begin


class _NothingToDo(OperatorError):
    """The command does not fit what there is."""


def run(command: str, namespace: str, name: str, *, as_json: bool) -> int:
    """Exit status 0, or 2 when the service cannot be asked for or the command means nothing to it."""
    try:
        service, events = asyncio.run(_steer(command, namespace, name))
    except (OperatorError, ConfigException, OSError) as error:
        print(f"baton rollout: {error}", file=sys.stderr)
        return 2
    change = service.status.rollout or RolloutStatus()
    if as_json:
        print(json.dumps(change.model_dump(mode="json", by_alias=True)))
    else:
        Console().print(picture(service, events))
    return 0


async def _steer(command: str, namespace: str, name: str) -> tuple[Service, Sequence[Object]]:
    async with connected() as client:
        api = ApiServer(client, lambda: True, lambda verb, plural: None, _MANAGER)
        item = await api.get(SERVICES, namespace, name)
        match command:
            case "pause":
                item = await api.patch_spec(SERVICES, item, {"rollout": {"paused": True}})
            case "resume":
                if Service.from_object(item).manifest.spec.rollout.paused:
                    item = await api.patch_spec(SERVICES, item, {"rollout": {"paused": False}})
                item = await _annotate(api, item, PROMOTED)
            case "undo":
                if not _under_way(Service.from_object(item)):
                    raise _NothingToDo("there is nothing to undo: no change is under way")
                item = await _annotate(api, item, UNDONE)
        events = await api.list(EVENTS, namespace, {}, {"involvedObject.name": name})
        return Service.from_object(item), events


async def _annotate(api: ApiServer, item: Object, annotation: str) -> Object:
    generation = str(int_at(item, "metadata", "generation"))
    return await api.patch_metadata(SERVICES, item, {"annotations": {annotation: generation}})


def _under_way(service: Service) -> bool:
    """Whether workers are being led to another version, or will be as far as is known."""
    change = service.status.rollout
    unseen = service.status.observed_generation != service.generation
    return unseen or (change is not None and change.phase not in ("Done", "Failed"))


def picture(service: Service, events: Sequence[Object]) -> Group:
    """What `baton rollout` prints: the change with its workers, then what happened."""
    change = service.status.rollout
    lines = list(change_under_way(service.status))
    if change is not None and not lines:
        lines = [Text(f"{change.phase}: {change.version} serves")]
    if service.status.observed_generation != service.generation:
        lines.append(Text(f"the operator has yet to look at generation {service.generation} of the manifest"))
    return Group(*lines, *_history(events))


def _history(events: Sequence[Object]) -> Iterator[Text]:
    told = [one for one in events if text_at(one, "reason").startswith(_TOLD)]
    for event in sorted(told, key=_time)[-_SHOWN:]:
        yield Text(f"  {_time(event)} {text_at(event, 'reason').removeprefix(_TOLD)}: {text_at(event, 'message')}")


def _time(event: Mapping[str, object]) -> str:
    return text_at(event, "lastTimestamp")
