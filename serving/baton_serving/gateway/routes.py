"""Which paths are the data path, and what happens there. Everything else is the admin application's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from baton_serving.gateway.core import Core
from baton_serving.gateway.http.downstream import Incoming, Session
from baton_serving.gateway.responses.route import responses
from baton_serving.gateway.sink import Sink

Handler = Callable[[Core, Incoming, Sink, str], Session | None]
"""Begins the answer to a request of a tenant, in the sink; the session hears of the client. None: answered already."""


def on_workers(path: str, *, generates: bool) -> Handler:
    """On the workers' route `path`: both legs, or a worker that serves whole; what generates nothing, on any one."""

    def handle(core: Core, incoming: Incoming, sink: Sink, tenant: str) -> Session | None:
        return core.begin(incoming, path, sink, tenant, generates=generates)

    return handle


DATA_ROUTES: Mapping[str, Handler] = {
    **{path: on_workers(path, generates=True) for path in ("/v1/chat/completions", "/v1/completions", "/generate")},
    **{path: on_workers(path, generates=False) for path in ("/v1/embeddings", "/tokenize", "/detokenize")},
    "/v1/responses": responses,
}
