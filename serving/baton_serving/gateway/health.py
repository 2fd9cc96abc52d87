"""Active health checks: every worker is asked regularly; one that does not answer is given up before its lease ends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from baton_serving.gateway.core import Core
from baton_serving.gateway.fleet import Endpoint
from baton_serving.gateway.http.head import Head
from baton_serving.gateway.http.upstream import Connection


@dataclass(frozen=True)
class HealthConfig:
    """Seconds between two checks of a worker, and how long its answer may take."""

    interval: float = 1.0
    timeout: float = 3.0


class HealthChecks:
    """One task per worker."""

    def __init__(self, core: Core, config: HealthConfig) -> None:
        self._core = core
        self._config = config
        self._tasks: dict[Endpoint, asyncio.Task[None]] = {}

    def follow(self) -> None:
        """The fleet has changed: check whoever is in it."""
        current = set(self._core.router.fleet.endpoints.values())
        for endpoint in current - self._tasks.keys():
            self._tasks[endpoint] = asyncio.get_running_loop().create_task(self._watch(endpoint))
        for endpoint in self._tasks.keys() - current:
            self._tasks.pop(endpoint).cancel()

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, endpoint: Endpoint) -> None:
        while True:
            await asyncio.sleep(self._config.interval)
            self._core.set_responsive(endpoint, await self._answers(endpoint))

    async def _answers(self, endpoint: Endpoint) -> bool:
        """Whether the worker answered at all in time; what its state is, the bootstrap server knows better."""
        try:
            async with asyncio.timeout(self._config.timeout):
                return await _ask(endpoint)
        except OSError:  # TimeoutError is one
            return False


async def _ask(endpoint: Endpoint) -> bool:
    connection = endpoint.pool.take() or await endpoint.pool.connect()
    answer = _Answer()
    connection.send(answer, (b"GET /health HTTP/1.1\r\n%b\r\n" % endpoint.pool.host_line,))
    return await answer.wait(connection)


class _Answer:
    """Hears any response; a connection that was closed while idle counts as an answer: the next check tells."""

    def __init__(self) -> None:
        self._heard: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def wait(self, connection: Connection) -> bool:
        try:
            return await self._heard
        except asyncio.CancelledError:
            connection.drop()
            raise

    def on_head(self, head: Head) -> bool:
        return False

    def on_events(self, chunks: bytes) -> None:
        """Never, as `on_head` said."""

    def on_end(self, body: bytes) -> None:
        self._say(True)

    def on_lost(self, reason: str) -> None:
        self._say(True)

    def _say(self, answered: bool) -> None:
        if not self._heard.done():
            self._heard.set_result(answered)
