"""Every response says which worker gave it: addresses are used again, and a gateway must know whom it reached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

INCARNATION_HEADER: Final = b"x-baton-incarnation"


class IdentityMiddleware:
    """Adds the header with what `incarnation()` says at that moment, unless that is nothing."""

    def __init__(self, app: ASGIApp, incarnation: Callable[[], str]) -> None:
        self._app = app
        self._incarnation = incarnation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                incarnation = self._incarnation()
                if incarnation:
                    message["headers"] = [*message.get("headers", ()), (INCARNATION_HEADER, incarnation.encode())]
            await send(message)

        await self._app(scope, receive, signed)
