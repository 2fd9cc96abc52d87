"""A gateway's data path on a real port, over workers whose addresses a test knows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from baton_bootstrap.client import View
from baton_bootstrap.records import Entry, Role, State, Status, Worker
from baton_serving.gateway.access import Access
from baton_serving.gateway.admin import admin_app
from baton_serving.gateway.app import App
from baton_serving.gateway.core import Core
from baton_serving.gateway.history import History
from baton_serving.gateway.http.bodies import Bodies
from baton_serving.gateway.http.downstream import ClientConnection
from baton_serving.gateway.routing import Router, RoutingConfig
from baton_serving.gateway.siblings import Siblings
from baton_serving.gateway.spans import RequestSpans

BODY_LIMIT = 30_000


def entry(url: str, model: str, role: Role = Role.BOTH) -> Entry:
    """A worker as the bootstrap server tells of it."""
    worker = Worker(id=url, incarnation=url, epoch=1, role=role, http_url=url, model=model, weight_digest="w")
    return Entry(worker=worker, status=Status(state=State.READY))


@asynccontextmanager
async def gateway_before(
    *urls: str,
    model: str,
    access: Access | None = None,
    spans: RequestSpans | None = None,
    roles: Sequence[Role] = (),
    worker_key: str | None = None,
) -> AsyncIterator[str]:
    """The gateway's URL. Workers serve whole, or have `roles`."""
    history = History()
    core = Core(Router(RoutingConfig(worker_wait=0.2), worker_key=worker_key), on_begin=history.add)
    siblings = Siblings()
    siblings.attach(lambda: core.figures.report(core.gauges(1, 0)), history.explain)
    core.on_end = None if spans is None else spans.end
    kinds = roles or [Role.BOTH] * len(urls)
    entries = {url: entry(url, model, role) for url, role in zip(urls, kinds, strict=True)}
    core.update(View(version=1, connected=1, entries=entries))
    app = App(core, admin_app(core, siblings), access, spans)
    connections: set[ClientConnection] = set()
    bodies = Bodies(BODY_LIMIT, 100 * BODY_LIMIT)
    server = await asyncio.get_running_loop().create_server(
        lambda: ClientConnection(app, connections, bodies), "127.0.0.1", 0
    )
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for connection in list(connections):
            connection.close()
        async with asyncio.timeout(5):
            await core.wait_idle()
        for endpoint in core.router.fleet.endpoints.values():
            endpoint.pool.close()
