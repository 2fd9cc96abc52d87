"""Gives each request to whoever answers it."""

from __future__ import annotations

from collections.abc import Mapping

from baton_serving.errors import BatonError
from baton_serving.gateway.access import Access, OpenAccess
from baton_serving.gateway.asgi import Application, AsgiSession
from baton_serving.gateway.core import Core
from baton_serving.gateway.http.downstream import ClientConnection, Incoming, Session
from baton_serving.gateway.replies import error_reply
from baton_serving.gateway.routes import DATA_ROUTES, Handler
from baton_serving.gateway.spans import RequestSpans

OPEN_PATHS = frozenset({"/health", "/liveness", "/readiness"})


class App:
    """The connections' `Dispatch`."""

    def __init__(
        self,
        core: Core,
        admin: Application,
        access: Access | None = None,
        spans: RequestSpans | None = None,
        routes: Mapping[str, Handler] = DATA_ROUTES,
    ) -> None:
        self._core = core
        self._admin = admin
        self._access = access or OpenAccess()
        self._spans = spans
        self._routes = routes

    def __call__(self, incoming: Incoming, client: ClientConnection) -> Session | None:
        handler = self._routes.get(incoming.path)
        try:
            tenant = "" if incoming.path in OPEN_PATHS else self._access.tenant(incoming)
        except BatonError as error:
            reply = error_reply(error)
            client.reply(reply.status, reply.lines, reply.body)
            return None
        if handler is not None:
            if self._spans is not None:
                return self._traced(self._spans, handler, incoming, client, tenant)
            return handler(self._core, incoming, client, tenant)
        return AsgiSession(self._admin, incoming, client)

    def _traced(
        self, spans: RequestSpans, handler: Handler, incoming: Incoming, client: ClientConnection, tenant: str
    ) -> Session | None:
        traceparent = spans.begin(incoming)
        session = handler(self._core, incoming, client, tenant)
        if session is None:
            spans.refused(traceparent, incoming.path)
        return session
