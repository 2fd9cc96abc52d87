"""The operator as a process: Lease, watches, rounds, resync, probes."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
from aiohttp import web

from baton_operator.controller.api_server import ApiServer, connected
from baton_operator.controller.lease import Lease
from baton_operator.controller.metrics import Metrics
from baton_operator.controller.reconciler import Reconciler
from baton_operator.controller.reports import Reports
from baton_operator.controller.resources import OPTIONAL, SCALERS, SERVICES
from baton_operator.controller.rollouts import Rollouts
from baton_operator.controller.survey import Key, Sighting, survey
from baton_operator.controller.watching import watch
from baton_operator.controller.work_queue import WorkQueue
from baton_operator.errors import OperatorError
from baton_operator.planner import Settings

log = logging.getLogger(__name__)

_ROUNDS_AT_ONCE = 8
_SPREAD = 10.0  # seconds over which a resync looks at all services
_FIRST_RETRY, _LAST_RETRY = 0.5, 60.0  # seconds
_LATE = 3  # a resync that is overdue by so many periods makes the process unhealthy


@dataclass(frozen=True)
class Options:
    """What the command line says. `namespaces` are those of the services, all when empty."""

    settings: Settings
    identity: str
    lease: str
    host: str
    port: int
    resync_seconds: float
    namespaces: Sequence[str] = ()


async def operate(options: Options) -> int:
    """Work until a signal comes, then return 0; 1 when the Lease or the watches are lost."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    metrics, queue = Metrics(), WorkQueue[Key]()
    lease = Lease(options.settings.namespace, options.lease, options.identity)
    metrics.follow(lambda: len(queue), lease.held)
    async with connected() as client, aiohttp.ClientSession(trust_env=True) as session:
        api = ApiServer(client, lease.held, metrics.count_call)
        reconciler = Reconciler(api, Reports(session), Rollouts(session), options.settings)
        operator = Operator(options, api, queue, reconciler, metrics)
        async with _probes(options, operator, metrics):
            if not await _unless_stopped(stop, operator.definitions()):
                return 0
            if not await _unless_stopped(stop, lease.acquire(api)):
                return 0
            try:
                return await operator.run(lease, stop)
            finally:
                await lease.release(api)


class Operator:
    """The tasks that run while the Lease is held."""

    def __init__(
        self, options: Options, api: ApiServer, queue: WorkQueue[Key], reconciler: Reconciler, metrics: Metrics
    ) -> None:
        self._options = options
        self._api = api
        self._queue = queue
        self._reconciler = reconciler
        self._metrics = metrics
        self._failures: dict[Key, int] = {}
        self._synced: float | None = None
        self._sightings: dict[Key, Sighting] = {}

    def healthy(self) -> bool:
        """Whether the last resync is not long overdue; a candidate that waits for the Lease has none to do."""
        return self._synced is None or time.monotonic() < self._synced + _LATE * self._options.resync_seconds + 60.0

    async def run(self, lease: Lease, stop: asyncio.Event) -> int:
        """Until `stop` is set: 0; or the Lease or the watches are lost: 1."""
        await self._find_apis()
        watching = watch(self._changed, self._options.namespaces, self._reconciler.settings.apis)
        works = (watching, lease.keep(self._api), self._resync(), *self._workers(), stop.wait())
        tasks = [asyncio.create_task(work) for work in works]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended = [task for task in tasks if task.done()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in ended:
            if (error := task.exception()) is not None:
                log.error("the operator ends: %s", error)
                return 1
        return 0 if stop.is_set() else 1

    def _changed(self, key: Key, delay: float) -> None:
        """Something happened to a service: what a resync saw of it is out of date."""
        self._sightings.pop(key, None)
        self._queue.add(key, delay)

    def _workers(self) -> list[Coroutine[Any, Any, None]]:
        return [self._work() for _ in range(_ROUNDS_AT_ONCE)]

    async def _work(self) -> None:
        while True:
            key = await self._queue.take()
            try:
                wait = await self._round(key)
            finally:
                self._queue.done(key)
            if wait is not None:
                self._queue.add(key, wait)

    async def _round(self, key: Key) -> float | None:
        """One round; after a failure again, later each time."""
        outcome = "done"
        try:
            with self._metrics.round_seconds.time():
                wait = await self._reconciler.round(key, self._sightings.pop(key, None))
            self._failures.pop(key, None)
        except OperatorError as error:
            outcome, wait = type(error).__name__, self._retry(key)
            log.warning("%s/%s: %s; again in %.1f s", *key, error, wait)
        except Exception:
            outcome, wait = "fault", self._retry(key)
            log.exception("%s/%s: a fault of the operator; again in %.1f s", *key, wait)
        self._metrics.rounds.labels(outcome).inc()
        return wait

    def _retry(self, key: Key) -> float:
        count = self._failures[key] = self._failures.get(key, 0) + 1
        return min(_FIRST_RETRY * 2.0 ** (count - 1), _LAST_RETRY)

    async def _resync(self) -> None:
        """Every service again and again, whatever the watches say: they may miss events without a word."""
        while True:
            try:
                await self._find_apis()
                found = await survey(self._api, self._options.namespaces, self._reconciler.settings.apis)
                self._metrics.services.set(len(found))
                self._sightings = dict(found)
                pause = min(self._options.resync_seconds, _SPREAD) / max(1, len(found))
                for index, key in enumerate(found):
                    self._queue.add(key, index * pause)
                self._synced = time.monotonic()
            except OperatorError as error:
                log.warning("resync: %s", error)
                await asyncio.sleep(min(5.0, self._options.resync_seconds))
                continue
            await asyncio.sleep(self._options.resync_seconds)

    async def definitions(self) -> None:
        """Wait until the API server lists our kinds: kopf looks once, and is deaf to what it does not find then."""
        wanted = {SERVICES.plural, SCALERS.plural}
        while True:
            try:
                group = SERVICES.api_version in await self._api.api_versions()
                if group and wanted <= await self._api.plurals(SERVICES.api_version):
                    return
                log.warning("the API server does not list %s yet; are the definitions installed?", SERVICES.api_version)
            except OperatorError as error:
                log.warning("discovery: %s", error)
            await asyncio.sleep(1.0)

    async def _find_apis(self) -> None:
        apis = await self._api.api_versions() & OPTIONAL
        if apis != self._reconciler.settings.apis:
            log.info("optional APIs of this cluster: %s", ", ".join(sorted(apis)) or "none")
            self._reconciler.settings = replace(self._reconciler.settings, apis=apis)


@asynccontextmanager
async def _probes(options: Options, operator: Operator, metrics: Metrics) -> AsyncIterator[None]:
    """`/health` for probes, also of an operator that waits for the Lease, and `/metrics`."""

    async def health(_: web.Request) -> web.Response:
        healthy = operator.healthy()
        return web.json_response({"status": "ok" if healthy else "stuck"}, status=200 if healthy else 503)

    async def metrics_text(_: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    app = web.Application()
    app.add_routes([web.get("/health", health), web.get("/metrics", metrics_text)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, options.host, options.port).start()
        yield
    finally:
        await runner.cleanup()


async def _unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Whether `work` was done before `stop` was set."""
    task, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
    stopped.cancel()
    await asyncio.gather(task, stopped, return_exceptions=True)
    if task.cancelled():
        return False
    task.result()
    return True
