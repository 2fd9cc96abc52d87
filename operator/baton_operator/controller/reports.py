"""What workers report, read from a service's bootstrap server, and what they are to serve, written there."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

from baton_bootstrap.auth import credentials
from baton_operator.planner import Context, Observed, WorkerReport
from baton_operator.planner.bootstrap import COMPONENT as BOOTSTRAP
from baton_operator.planner.context import BOOTSTRAP_HTTP_PORT, COMPONENT
from baton_operator.planner.objects import Object, int_at, label, list_at, map_at, text_at, value_at

log = logging.getLogger(__name__)

_TIMEOUT = aiohttp.ClientTimeout(total=3.0)
_MAX_BYTES = 16 << 20
_TEXTS = ("id", "role", "state", "weights", "url", "incarnation", "revision", "phase", "staged", "error")


_COUNTS = ("done", "total", "queued_tokens", "free_pages", "total_pages", "prompt_tokens", "answer_tokens")
_SECONDS = ("prompt_seconds", "answer_seconds")


@dataclass(frozen=True)
class Listing:
    """The workers, pods that still fetch their model, and how many requests gateways hold as no worker is ready."""

    workers: Sequence[WorkerReport]
    fetching: Sequence[WorkerReport] = field(default_factory=list)
    waiting: int = 0


class Reports:
    """Asks the replicas of a bootstrap server in turn; the first that answers is believed, as all know all workers."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def of(self, context: Context, observed: Observed) -> Listing | None:
        """None while no replica is up, none answers or those that do have just begun to hear of workers."""
        for url in _urls(context, observed):
            try:
                found = await self._read(f"{url}/workers", observed.token)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                log.debug("no reports from %s: %s", url, error)
                continue
            if found is not None:
                return found
        return None

    async def assign(
        self, context: Context, observed: Observed, assignments: Mapping[str, Mapping[str, object]]
    ) -> None:
        """Tell every replica that is up what workers are to serve; to be repeated, as they do not keep it."""
        for url in _urls(context, observed):
            try:
                async with self._session.put(
                    f"{url}/assignments", json=assignments, headers=dict(credentials(observed.token)), timeout=_TIMEOUT
                ) as answer:
                    if answer.status >= 400:
                        log.warning("%s took no assignments: %s", url, (await answer.text()).strip())
            except (aiohttp.ClientError, TimeoutError) as error:
                log.warning("%s took no assignments: %s", url, error)

    async def _read(self, url: str, token: str) -> Listing | None:
        async with self._session.get(url, headers=dict(credentials(token)), timeout=_TIMEOUT) as answer:
            answer.raise_for_status()
            if (answer.content_length or 0) > _MAX_BYTES:
                raise ValueError(f"{answer.content_length} bytes are too many")
            body = await answer.json()
        if value_at(body, "warming") is True:
            return None
        rows = [_report(row) for row in list_at(body, "workers") if isinstance(row, Mapping)]
        workers, fetching = ([row for row in rows if (row.state == "starting") is early] for early in (False, True))
        return Listing(workers, fetching, int_at(body, "waiting"))


def _report(row: Object) -> WorkerReport:
    texts = {key: text_at(row, key) for key in _TEXTS}
    counts = {key: int_at(row, key) for key in _COUNTS}
    seconds = {key: _number(value_at(row, key)) for key in _SECONDS}
    links = {name: _number(rate) for name, rate in map_at(row, "links").items()}
    return WorkerReport(**{**texts, **counts, **seconds, "links": links})  # type: ignore[arg-type]


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _urls(context: Context, observed: Observed) -> Sequence[str]:
    up = {text_at(item, "metadata", "name") for item in observed.of_kind("Deployment") if _is_up(item)}
    return [f"http://{context.host(name)}:{BOOTSTRAP_HTTP_PORT}" for name in context.bootstrap_names() if name in up]


def _is_up(item: Object) -> bool:
    return label(item, COMPONENT) == BOOTSTRAP and int_at(item, "status", "readyReplicas") > 0
