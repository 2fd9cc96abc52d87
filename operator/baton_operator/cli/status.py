"""`baton status NAME`: how a service in a cluster is: pairs, versions, workers and their queues."""

from __future__ import annotations

import asyncio
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence

from kubernetes.aio.config import ConfigException
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from baton_bootstrap.auth import PROXIED_HEADER, credentials
from baton_operator.api.status import RoleStatus, Status
from baton_operator.controller.api_server import ApiServer, connected
from baton_operator.controller.credentials import bootstrap_token
from baton_operator.controller.resources import SERVICES
from baton_operator.errors import ApiError, OperatorError
from baton_operator.planner import Context, Object, Service
from baton_operator.planner.objects import int_at, list_at, text_at

_PERIOD = 2.0  # seconds between two looks


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the InferenceService")
    parser.add_argument("-n", "--namespace", default="default", help="its namespace")
    parser.add_argument("-w", "--watch", action="store_true", help="show it anew every two seconds, until Ctrl-C")


def run(args: Namespace) -> int:
    """Exit status 0 when the service is ready, 1 when it is not, 2 when it cannot be asked for."""
    try:
        return asyncio.run(_show(args.namespace, args.name, args.watch))
    except (OperatorError, ConfigException, OSError) as error:
        print(f"baton status: {error}", file=sys.stderr)
        return 2


async def _show(namespace: str, name: str, watch: bool) -> int:
    async with connected() as client:
        api = ApiServer(client, lambda: False, lambda verb, plural: None)
        service, workers = await look(api, namespace, name)
        if not watch:
            Console().print(picture(service, workers))
            return 0 if _holds(service.status, "Ready") else 1
        with Live(picture(service, workers), auto_refresh=False) as live:
            while True:
                await asyncio.sleep(_PERIOD)
                live.update(picture(*await look(api, namespace, name)), refresh=True)


async def look(api: ApiServer, namespace: str, name: str) -> tuple[Service, Sequence[Object] | None]:
    """The service, and its workers as the bootstrap server lists them; None when nobody may or can ask it."""
    service = Service.from_object(await api.get(SERVICES, namespace, name))
    context = Context(service)
    try:
        shown = credentials(await bootstrap_token(api, context))
    except (ApiError, OperatorError):
        return service, None
    headers = {PROXIED_HEADER: shown[0][1]} if shown else {}
    for replica in context.bootstrap_names():
        try:
            found = await api.ask(namespace, replica, "http", "workers", headers)
        except (ApiError, OperatorError):
            continue
        return service, [row for row in list_at(found, "workers") if isinstance(row, Mapping)]
    return service, None


def picture(service: Service, workers: Sequence[Object] | None) -> Group:
    """What `baton status` prints."""
    status, manifest = service.status, service.manifest
    head = Text(f"{manifest.metadata.name}  {status.url or 'no endpoint yet'}", style="bold")
    pairs = Text(f"{status.ready_pairs} ready pairs of version {status.version or '?'}")
    lines = [Text(f"{item.type}: {item.status}, {item.message}") for item in status.conditions]
    return Group(
        *(head, pairs, *lines, *change_under_way(status)),
        *(_roles(status), *_download(status), _workers(workers), *_links(status)),
    )


def change_under_way(status: Status) -> Iterator[Text | Table]:
    """The change that is under way, or was taken back: its step, what it waits for, and what each worker serves."""
    change = status.rollout
    if change is None or change.phase == "Done":
        return
    yield Text(f"{change.phase}: {change.stable} to {change.version}; {change.message or change.reason}")
    if change.workers:
        table = _table("worker", "serves", "stage")
        for worker in change.workers:
            table.add_row(worker.name, worker.revision, worker.stage)
        yield table


def _roles(status: Status) -> Table:
    table = _table("role", "wanted", "ready", "of earlier revisions", "revision")
    for name, role in (("prefill", status.prefill), ("decode", status.decode)):
        if isinstance(role, RoleStatus):
            table.add_row(name, str(role.desired), str(role.ready), str(role.old), role.revision)
    return table


def _download(status: Status) -> Iterator[Text]:
    if status.download is not None:
        yield Text(f"{status.download.pods} pods fetch the model: {status.download.percent}%")


def _links(status: Status) -> Iterator[Table]:
    if status.links:
        table = _table("from", "to", "GB/s")
        for link in status.links:
            table.add_row(link.prefill, link.decode, f"{link.gigabytes_per_second:g}")
        yield table


def _workers(workers: Sequence[Object] | None) -> Table | Text:
    if workers is None:
        return Text(
            "The workers cannot be asked: the bootstrap server is not up, or you may not proxy to it or read its token."
        )
    table = _table("worker", "role", "state", "weights", "running", "queued tokens", "free pages")
    for row in workers:
        words = [text_at(row, key) for key in ("id", "role", "state", "weights")]
        pages = f"{int_at(row, 'free_pages')}/{int_at(row, 'total_pages')}"
        table.add_row(*words, str(int_at(row, "running")), str(int_at(row, "queued_tokens")), pages)
    return table


def _table(*headings: str) -> Table:
    table = Table()
    for heading in headings:
        table.add_column(heading)
    return table


def _holds(status: Status, kind: str) -> bool:
    return any(item.type == kind and item.status == "True" for item in status.conditions)
