"""One process of the gateway: the watch, the data path and the admin application on one loop."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import ssl
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from baton_bootstrap.client import WatchClient, report_waiting
from baton_bootstrap.errors import SetupError
from baton_bootstrap.files import LOOK_EVERY as LOOK_AT_FILES
from baton_bootstrap.tls import Tls, TlsFiles
from baton_serving.errors import ConfigError, Unavailable
from baton_serving.gateway.access import KeyFile
from baton_serving.gateway.admin import admin_app, probe_app
from baton_serving.gateway.admission.door import Door, DoorConfig
from baton_serving.gateway.admission.ledger import Ledger
from baton_serving.gateway.app import App
from baton_serving.gateway.cache_follower import CacheFollower, Source
from baton_serving.gateway.core import LOOK_EVERY, Core, Patience
from baton_serving.gateway.health import HealthChecks, HealthConfig
from baton_serving.gateway.history import AccessLog, History
from baton_serving.gateway.http.bodies import Bodies
from baton_serving.gateway.http.downstream import ClientConnection
from baton_serving.gateway.policies.memory import Memory
from baton_serving.gateway.record import Record
from baton_serving.gateway.routing import Router, RoutingConfig
from baton_serving.gateway.siblings import Siblings
from baton_serving.gateway.spans import RequestSpans
from baton_serving.tracing import Tracing

log = logging.getLogger(__name__)

IDLE_SECONDS = 75  # a client's idle connection is kept this long
SLOW_SECONDS = 60  # a request that takes longer to arrive is given up
SWEEP_SECONDS = 5
BACKLOG = 4096
TELL_WAITING_EVERY = 1.0


@dataclass(frozen=True)
class GatewayConfig:
    """`port` may be 0, and so may `probe_port`, which is None for none: see `admin.probe_app`. Times in seconds.

    `bootstrap` holds the host:port of every replica of the bootstrap server. `tls` is for clients, `worker_tls` for
    workers and bootstrap servers. `api_keys`: see `access.KeyFile`; `worker_key` is the API key of all workers, `token`
    that of the bootstrap servers. `body_limit` bytes are taken in one body, `bodies_limit` held of all that are open.
    `traces` is the address of an OTLP collector, None for no traces.
    """

    bootstrap: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    probe_port: int | None = None
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    door: DoorConfig = field(default_factory=DoorConfig)
    patience: Patience = field(default_factory=Patience)
    health: HealthConfig = field(default_factory=HealthConfig)
    body_limit: int = 64 * 1024 * 1024
    bodies_limit: int = 1024 * 1024 * 1024
    grace: float = 30.0
    access_log: Path | None = None
    api_keys: Path | None = None
    tls: TlsFiles | None = None
    worker_tls: TlsFiles | None = None
    traces: str | None = None
    token: str | None = None
    worker_key: str | None = None


def bind(host: str, port: int, *, flag: str = "--port", shared: bool = False) -> socket.socket:
    """A bound socket; `shared` ones may have the same port. Raises ConfigError when the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"--host {host}: {error.strerror or error}") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{flag} {port}: {host}:{port} cannot be listened on ({error.strerror}); choose another port"
        ) from error
    listener.setblocking(False)
    return listener


class GatewayProcess:
    """`start`, then it serves on the listener that it was given; `stop` lets open requests end first."""

    def __init__(self, config: GatewayConfig, siblings: Siblings | None = None, ledger: Ledger | None = None) -> None:
        self.config = config
        self.history = History()
        self._keys = None if config.api_keys is None else KeyFile(config.api_keys)
        self._tls = _tls(config.tls)
        self._worker_tls = _tls(config.worker_tls)
        router = Router(config.routing, tls=self._worker_tls, worker_key=config.worker_key)
        self.core = Core(router, self._door(ledger), config.patience, on_begin=self.history.add)
        self._caches: CacheFollower | None = None
        if isinstance(router.memory, Memory):
            self._caches = CacheFollower(router.memory, self._worker_tls, config.worker_key)
        self.connections: set[ClientConnection] = set()
        self._siblings = siblings or Siblings()
        self._watch = WatchClient(config.bootstrap, token=config.token, tls=config.worker_tls)
        self._health = HealthChecks(self.core, config.health)
        self._bodies = Bodies(config.body_limit, config.bodies_limit)
        self._servers: list[asyncio.Server] = []
        self._tracing: Tracing | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._log_file: BinaryIO | None = None

    def _door(self, ledger: Ledger | None) -> Door | None:
        """None when there is nothing to limit, ever: keys may come to have limits."""
        config = self.config
        if self._keys is not None:
            return Door(config.door, ledger, self._keys.limits)
        return None if config.door.open else Door(config.door, ledger)

    async def start(self, listener: socket.socket, probes: socket.socket | None = None) -> None:
        """Returns once it answers, at `probes` to probes and scrapers, who have no keys.

        Raises ConfigError when the access log cannot be written.
        """
        config = self.config
        if config.access_log is not None:
            self._open_log(config.access_log)
        self._siblings.attach(self._report, self.history.explain)
        await self._siblings.start()
        app = App(self.core, admin_app(self.core, self._siblings), self._keys, self._spans())
        await self._listen(listener, app, None if self._tls is None else self._tls.server)
        if probes is not None:
            await self._listen(probes, App(self.core, probe_app(self.core, self._siblings), routes={}))
        await self._watch.start()
        self._tasks = [
            asyncio.create_task(self._follow()),
            asyncio.create_task(self._tell_waiting()),
            asyncio.create_task(_every(LOOK_EVERY, self.core.look)),
            asyncio.create_task(_every(LOOK_AT_FILES, self._refresh)),
            asyncio.create_task(_every(SWEEP_SECONDS, self._sweep)),
        ]
        gc.collect()
        gc.freeze()  # what stands now stands for ever: no need to look through it again
        gc.set_threshold(50_000, 20, 50)

    async def stop(self) -> None:
        """Take no new connection, let open requests end within the grace period, then end them with an error."""
        self.core.draining = True
        for server in self._servers:
            server.close()
        for connection in list(self.connections):
            connection.stop_when_idle()
        try:
            async with asyncio.timeout(self.config.grace):
                await self.core.wait_idle()
        except TimeoutError:
            log.warning("requests are still open after the grace period: they are ended")
            for exchange in list(self.core.open):
                exchange.expire(Unavailable("the gateway is stopping; try again", retry_after=1))
        for connection in list(self.connections):
            connection.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._health.close()
        if self._caches is not None:
            await self._caches.aclose()
        await self._watch.aclose()
        await self._siblings.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        if self._log_file is not None:
            self._access_log.flush()
            self._log_file.close()

    async def _listen(self, listener: socket.socket, app: App, tls: ssl.SSLContext | None = None) -> None:
        server = await asyncio.get_running_loop().create_server(
            lambda: ClientConnection(app, self.connections, self._bodies), sock=listener, backlog=BACKLOG, ssl=tls
        )
        self._servers.append(server)

    def _open_log(self, path: Path) -> None:
        try:
            self._log_file = path.open("ab")
        except OSError as error:
            raise ConfigError(f"--access-log {path}: {error.strerror}") from error
        self._access_log = AccessLog(self._log_file)
        self.core.on_end = self._access_log.add

    async def _follow(self) -> None:
        version = -1
        while True:
            view = await self._watch.changed(version)
            version = view.version
            self.core.update(view)
            if self._caches is not None:
                fleet = self.core.router.fleet
                workers = (*fleet.endpoints.values(), *fleet.absent.values())
                self._caches.update(Source(one.id, one.incarnation, one.worker.http_url) for one in workers)
            self._health.follow()

    async def _tell_waiting(self) -> None:
        """Let the bootstrap server know of requests that wait for a worker: whoever starts workers asks there."""
        name, told, config = uuid.uuid4().hex, 0, self.config
        while True:
            await asyncio.sleep(TELL_WAITING_EVERY)
            waiting = len(self.core.waiting)
            if waiting or told:
                await report_waiting(config.bootstrap, name, waiting, token=config.token, tls=config.worker_tls)
                told = waiting

    def _sweep(self) -> None:
        """Close clients' connections that have been idle, or in the middle of a request, for too long."""
        for connection in list(self.connections):
            connection.idle_ticks += 1
            limit = IDLE_SECONDS if connection.idle else SLOW_SECONDS
            if connection.session is None and connection.idle_ticks * SWEEP_SECONDS > limit:
                connection.close()

    def _spans(self) -> RequestSpans | None:
        if self.config.traces is None:
            return None
        self._tracing = Tracing("baton-gateway", self.config.traces)
        spans, log_end = RequestSpans(self._tracing), self.core.on_end

        def on_end(record: Record) -> None:
            spans.end(record)
            if log_end is not None:
                log_end(record)

        self.core.on_end = on_end
        return spans

    def _refresh(self) -> None:
        """Take renewed certificates and keys over."""
        for renewed in (self._tls, self._worker_tls, self._keys):
            if renewed is not None:
                renewed.refresh()

    def _report(self) -> dict[str, object]:
        gauges = self.core.gauges(self._watch.view.connected, len(self.connections))
        caches, memory = self._caches, self.core.router.memory
        if caches is not None and isinstance(memory, Memory):
            gauges["baton_gateway_prefix_keys"] = {(): len(memory.index)}
            gauges["baton_gateway_cache_streams"] = {(): caches.streams}
            gauges["baton_gateway_cache_resyncs"] = {(): caches.resyncs}
        return dict(self.core.figures.report(gauges))


def _tls(files: TlsFiles | None) -> Tls | None:
    try:
        return None if files is None else Tls(files)
    except SetupError as error:
        raise ConfigError(str(error)) from error


async def _every(seconds: float, call: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(seconds)
        call()
