"""What a rollout needs beyond the API server: what gateways send requests to, how these fare, and a probe."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from baton_operator.controller.credentials import client_tls
from baton_operator.controller.survey import Key
from baton_operator.planner import Context, Observed, Plan
from baton_operator.planner.context import COMPONENT, PROBE_PORT
from baton_operator.planner.gateway import COMPONENT as GATEWAY
from baton_operator.planner.gateway import open_port
from baton_operator.planner.objects import Object, label, list_at, text_at
from baton_operator.planner.revision import name_of, wanted_revisions
from baton_operator.rollout.health import HealthBook, ask_probe

log = logging.getLogger(__name__)

_TIMEOUT: Final = aiohttp.ClientTimeout(total=3.0)


@dataclass
class _Watched:
    """One rollout; `probes` are by revision."""

    health: HealthBook = field(default_factory=HealthBook)
    probes: dict[str, bool] = field(default_factory=dict)
    probing: asyncio.Task[None] | None = None


class Rollouts:
    """By service, for as long as a rollout is under way; what is forgotten is asked again."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._watched: dict[Key, _Watched] = {}

    def forget(self, key: Key) -> None:
        watched = self._watched.pop(key, None)
        if watched is not None and watched.probing is not None:
            watched.probing.cancel()

    async def look(self, key: Key, context: Context, observed: Observed) -> Observed:
        """`observed`, and while a rollout is under way what gateways, workers' metrics and the probe say."""
        if not _under_way(context):
            self.forget(key)
            return observed
        watched = self._watched.setdefault(key, _Watched())
        port = open_port(context)
        gateways = await asyncio.gather(*(self._ready_for(pod, port) for pod in observed.pods if _is_gateway(pod)))
        workers = [(one.id, one.incarnation, _open_url(context, one.url)) for one in observed.workers or () if one.url]
        counts = await watched.health.look(self._session, workers)
        return replace(
            observed,
            gateways=[found for found in gateways if found is not None],
            counts=counts,
            probes=dict(watched.probes),
        )

    def probe(self, key: Key, context: Context, observed: Observed, made: Plan) -> None:
        """Have a worker asked, as the plan wants it; the answer is there in a later round."""
        watched, probe = self._watched.get(key), context.manifest.spec.rollout.gates.probe
        urls = [one.url for one in observed.workers or () if one.id in made.probed]
        if watched is None or probe is None or not urls or (watched.probing and not watched.probing.done()):
            return

        async def ask() -> None:
            tls = client_tls(context, observed)
            text = await ask_probe(self._session, urls[0], probe.prompt, tls)
            watched.probes = {made.probe: probe.expect in text}
            if probe.expect not in text:
                log.warning("%s/%s: the probe was answered %r, not with %r", *key, text[:200], probe.expect)

        watched.probing = asyncio.create_task(ask())

    async def _ready_for(self, pod: Object, port: int) -> frozenset[str] | None:
        """The workers that a gateway sends requests to; None when it does not answer."""
        url = f"http://{text_at(pod, 'status', 'podIP')}:{port}/v1/baton/workers"
        try:
            async with self._session.get(url, timeout=_TIMEOUT) as answer:
                answer.raise_for_status()
                rows = await answer.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            log.debug("no answer from %s: %s", url, error)
            return None
        ready = [row for row in rows if text_at(row, "state") == "ready" and row.get("responsive") is True]
        return frozenset(text_at(row, "id") for row in ready)


def _open_url(context: Context, url: str) -> str:
    """Where a worker tells its figures to whoever asks: with mutual TLS on its port for probes."""
    if not context.manifest.spec.security.mutual_tls:
        return url
    return f"http://{urlsplit(url).hostname}:{PROBE_PORT}"


def _under_way(context: Context) -> bool:
    status = context.service.status.rollout
    wanted = name_of(wanted_revisions(context.manifest.spec))
    return status is not None and (status.phase not in ("Done", "Failed") or status.version != wanted)


def _is_gateway(pod: Object) -> bool:
    ready = any(text_at(one, "type") == "Ready" and text_at(one, "status") == "True" for one in _conditions(pod))
    return label(pod, COMPONENT) == GATEWAY and ready and not text_at(pod, "metadata", "deletionTimestamp")


def _conditions(pod: Object) -> list[object]:
    return list(list_at(pod, "status", "conditions"))
