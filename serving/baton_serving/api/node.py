"""`baton serve` on a node above 0: ranks for a worker whose API node 0 serves, and a port for probes."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
from pathlib import Path

import uvloop
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from baton_bootstrap.announce import announce
from baton_serving import __version__
from baton_serving.api.server import http_server
from baton_serving.config import ServerConfig
from baton_serving.errors import InternalError
from baton_serving.runtime.node import Node
from baton_serving.runtime.reachable import url_of

log = logging.getLogger(__name__)


def serve_node(
    config: ServerConfig, host: str, probes: socket.socket, tls: ssl.SSLContext | None, patience: float
) -> int:
    """Compute for node 0 until the worker ends, and answer at `probes` from when all of it can serve. SIGTERM and
    SIGINT have the whole worker drain; it gets `patience` seconds for that.

    Returns the exit status: 0, or 1 when node 0 or a child was lost. ConfigError for what the caller must change.
    """
    with Node(config, host) as node:
        try:
            node.start()
        except InternalError as error:
            log.error("%s", error.message)
            return 1
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(node, config, host, probes, tls, patience))


async def _serve(
    node: Node,
    config: ServerConfig,
    host: str,
    probes: socket.socket,
    tls: ssl.SSLContext | None,
    patience: float,
) -> int:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[tuple[str, int | None]] = loop.create_future()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)

    def child_ended(name: str, code: int | None) -> None:
        loop.call_soon_threadsafe(ended.set_result, (name, code))

    node.watch(child_ended)
    server = http_server(_create_app(), config.logging.log_level_http or "warning", tls)
    serving = asyncio.create_task(server.serve(sockets=[probes]))
    port = probes.getsockname()[1]
    facts: dict[str, str | int] = {"url": url_of(host, port, secure=tls is not None), "http_port": port}
    path = config.http.announce_file
    announce({**facts, "node_rank": config.nodes.node_rank}, Path(path) if path else None)
    stopping = asyncio.create_task(told.wait())
    ended.add_done_callback(lambda _: stopping.cancel())
    await asyncio.wait([stopping])
    if not ended.done():
        node.leave()
        await asyncio.wait([ended], timeout=patience)
    server.should_exit = True
    await serving
    if not ended.done():
        log.error("the worker did not end within %g s", patience)
        return 1
    name, code = ended.result()
    if code != 0:
        log.error("%s ended with exit code %s: the node goes down with it", name, code)
    return int(code != 0)


def _create_app() -> FastAPI:
    """Probes and scrapers ask every pod of a worker alike; figures are node 0's to tell."""
    app = FastAPI(title="Baton", version=__version__, openapi_url=None, docs_url=None, redoc_url=None)
    app.router.add_route("/health", _nothing_to_say, methods=["GET"])
    app.router.add_route("/metrics", _nothing_to_say, methods=["GET"])
    return app


async def _nothing_to_say(request: Request) -> Response:
    return Response(media_type=CONTENT_TYPE_LATEST)
