"""A proxy in front of the API server, on which watches open and then say nothing for ever."""

from __future__ import annotations

import asyncio
import ssl
import threading
from types import TracebackType

import aiohttp
from aiohttp import web
from support.baton_processes import free_port
from support.kube.control_plane import ControlPlane

_HOP = {"host", "content-length", "transfer-encoding", "connection", "content-encoding", "accept-encoding"}


class DeafProxy:
    """Runs within the context, in a thread; `watches` counts those that were opened."""

    def __init__(self, plane: ControlPlane) -> None:
        self.port = free_port()
        self.watches = 0
        self._over = asyncio.Event()
        self._target = plane.url
        self._trust = ssl.create_default_context(cafile=str(plane.ca))
        self._identity = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._identity.load_cert_chain(plane.folder / "api.crt", plane.folder / "api.key")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="deaf-proxy", daemon=True)

    def __enter__(self) -> DeafProxy:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(20)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    async def _open(self) -> None:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self._trust))
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._forward)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._identity).start()

    async def _close(self) -> None:
        self._over.set()
        await self._runner.cleanup()
        await self._session.close()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch") == "true":
            self.watches += 1
            silent = web.StreamResponse(headers={"Content-Type": "application/json"})
            await silent.prepare(request)
            await self._over.wait()
            return silent
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        url, body = f"{self._target}{request.path_qs}", await request.read() or None
        async with self._session.request(request.method, url, headers=headers, data=body) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            return web.Response(status=answer.status, headers=kept, body=await answer.read())
