"""API key check in front of every route but the liveness probe."""

from __future__ import annotations

import hmac
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from baton_serving.api.http.problems import error_response
from baton_serving.errors import Unauthorized

_OPEN_PATHS: Final = frozenset({"/health"})


def key_matches(given: str, expected: str) -> bool:
    """Whether two keys are equal, in a time that says nothing about where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())


class ApiKeyMiddleware:
    """Refuses HTTP requests without `Authorization: Bearer <key>`."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _OPEN_PATHS or self._allowed(scope):
            await self._app(scope, receive, send)
            return
        error = Unauthorized("this worker needs its API key: send the header Authorization: Bearer KEY")
        await error_response(error)(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and key_matches(key.strip(), self._api_key)
