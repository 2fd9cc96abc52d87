"""Runs an ASGI application on a client's connection: for everything that is not on the data path."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from baton_serving.errors import InternalError
from baton_serving.gateway.http.downstream import ClientConnection, Incoming
from baton_serving.gateway.http.framing import frame
from baton_serving.gateway.replies import error_reply

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]  # as ASGI defines it
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class AsgiSession:
    """One request to the application, in a task of its own."""

    def __init__(self, app: Application, incoming: Incoming, client: ClientConnection) -> None:
        self._incoming = incoming
        self._client = client
        self._status = 0
        self._lines = b""
        self._begun = False
        self._over = False
        self._body_taken = False
        self._gone = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._task = asyncio.get_running_loop().create_task(self._run(app))

    def client_gone(self) -> None:
        self._over = True
        self._gone.set()
        self._room.set()

    def pause(self) -> None:
        self._room.clear()

    def resume(self) -> None:
        self._room.set()

    async def _run(self, app: Application) -> None:
        try:
            await app(self._scope(), self._receive, self._send)
        except Exception:  # the border of an application: its client must get a reply
            log.exception("a request failed")
        if not self._over:
            self._over = True
            if self._begun:
                self._client.abort()
            else:
                reply = error_reply(InternalError("an internal error happened; the server's log has the details"))
                self._client.reply(reply.status, reply.lines, reply.body)

    def _scope(self) -> Message:
        incoming = self._incoming
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": incoming.version,
            "method": incoming.method,
            "scheme": "http",
            "path": incoming.path,
            "raw_path": incoming.path.encode("latin-1"),
            "query_string": incoming.query,
            "root_path": "",
            "headers": list(incoming.headers.items()),
            "client": None,
            "server": None,
        }

    async def _receive(self) -> Message:
        if not self._body_taken:
            self._body_taken = True
            return {"type": "http.request", "body": bytes(self._incoming.body), "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._over:
            return
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = [(name, value) for name, value in message.get("headers", ()) if name.lower() != b"content-length"]
            self._lines = b"".join(b"%b: %b\r\n" % header for header in headers)
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if not self._begun and not more:
            self._over = True
            self._client.reply(self._status, self._lines, body)
            return
        if not self._begun:
            self._begun = True
            self._client.begin(self._status, self._lines, frame(body))
        else:
            self._client.relay(frame(body))
        if not more:
            self._over = True
            self._client.end()
        await self._room.wait()
