"""The gateway as one process: the watch, the application and the HTTP server on one loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import uvicorn

from baton_bootstrap.client import WatchClient
from baton_bootstrap.hosted import HostedServer
from baton_serving.api.server import bind
from baton_serving.gateway.app import App
from baton_serving.gateway.metrics import Metrics
from baton_serving.gateway.routing import Router, RoutingConfig

IDLE_SECONDS = 75  # a client's idle connection is kept this long
DRAIN_SECONDS = 30  # open streams may take this long to end once the gateway was told to stop


@dataclass(frozen=True)
class GatewayConfig:
    """`port` may be 0. `bootstrap` holds the host:port of every replica of the bootstrap server."""

    bootstrap: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    token: str | None = None


class Gateway:
    """`start`, then `port` is known; `stop` lets open streams end first."""

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.port = 0
        self.router = Router(config.routing)
        self._watch = WatchClient(config.bootstrap, token=config.token)
        app = App(self.router, Metrics(self.router.fleet))
        self._server = HostedServer(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=DRAIN_SECONDS,
            )
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Raises `ConfigError` when the port cannot be had."""
        listener = bind(self.config.host, self.config.port)
        self.port = listener.getsockname()[1]
        await self._watch.start()
        self._tasks = [
            asyncio.create_task(self._follow()),
            asyncio.create_task(self._server.serve(sockets=[listener])),
        ]

    async def stop(self) -> None:
        follow, serve = self._tasks
        self._server.should_exit = True
        await asyncio.gather(serve, return_exceptions=True)
        follow.cancel()
        await asyncio.gather(follow, return_exceptions=True)
        await self._watch.aclose()

    async def _follow(self) -> None:
        version = -1
        while True:
            view = await self._watch.changed(version)
            version = view.version
            self.router.update(view)
