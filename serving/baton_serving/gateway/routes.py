"""Which paths are the data path, and what happens there. Everything else is the admin application's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from baton_serving.gateway.core import Core
from baton_serving.gateway.http.downstream import Incoming, Session
from baton_serving.gateway.sink import Sink

Handler = Callable[[Core, Incoming, Sink, str], Session | None]
"""Begins the answer to a request of a tenant, in the sink; the session hears of the client. None: answered already."""


def generating(path: str) -> Handler:
    """Both legs, or a worker that serves whole, on the workers' route `path`."""

    def handle(core: Core, incoming: Incoming, sink: Sink, tenant: str) -> Session | None:
        return core.begin(incoming, path, sink, tenant)

    return handle


DATA_ROUTES: Mapping[str, Handler] = {
    path: generating(path) for path in ("/v1/chat/completions", "/v1/completions", "/generate")
}
