"""The gateway's HTTP surface, as one ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from baton_serving.errors import BatonError, InvalidRequest, NotFound, TooLarge
from baton_serving.gateway.ask import read_ask
from baton_serving.gateway.leg import Inbox
from baton_serving.gateway.lifecycle import Event
from baton_serving.gateway.metrics import Metrics
from baton_serving.gateway.replies import Reply, error_reply
from baton_serving.gateway.request import Client, Request
from baton_serving.gateway.routing import Router

Message = MutableMapping[str, Any]  # as ASGI defines it
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ON_WORKERS = frozenset({"/v1/chat/completions", "/v1/completions", "/generate"})
MAX_BODY = 16 * 1024 * 1024


class ClientGone(Exception):
    """The client closed its connection before its request was complete."""


class App:
    """Requests that run on workers go to `Request`; the few others are answered here."""

    def __init__(self, router: Router, metrics: Metrics) -> None:
        self._router = router
        self._metrics = metrics

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        client = Client(send)
        try:
            if scope["path"] in ON_WORKERS:
                await self._run_on_workers(scope, receive, client)
            else:
                await client.reply(self._answer(scope), [])
        except ClientGone:
            pass
        except BatonError as error:
            await client.reply(error_reply(error), [])

    async def _run_on_workers(self, scope: Message, receive: Receive, client: Client) -> None:
        if scope["method"] != "POST":
            raise MethodNotAllowed(f"{scope['path']} takes POST, not {scope['method']}")
        ask = read_ask(scope["path"], scope["headers"], await _read_body(receive))
        inbox = Inbox()
        gone = asyncio.create_task(_report_disconnect(receive, inbox))
        try:
            await Request(ask, self._router, client, inbox, self._metrics).run()
        finally:
            gone.cancel()

    def _answer(self, scope: Message) -> Reply:
        match scope["method"], scope["path"]:
            case "GET" | "HEAD", "/health":
                ready = sorted(self._router.fleet.models)
                state = "ok" if ready else "no worker is ready"
                return Reply(200 if ready else 503, orjson.dumps({"status": state, "models": ready}))
            case "GET" | "HEAD", "/liveness":
                return Reply(200, b'{"status":"ok"}')
            case "GET", "/metrics":
                kind = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
                return Reply(200, self._metrics.text(), [kind])
            case "GET", "/baton/versions":
                fleets = self._router.fleet.models.items()
                return Reply(200, orjson.dumps({name: dict(fleet.shares) for name, fleet in fleets}))
            case "GET", "/v1/models":
                models = [_model(name) for name in sorted(self._router.fleet.models)]
                return Reply(200, orjson.dumps({"object": "list", "data": models}))
        raise NotFound(f"there is no {scope['method']} {scope['path']} here")


class MethodNotAllowed(InvalidRequest):
    status = 405
    code = "method_not_allowed"


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "baton"}


async def _read_body(receive: Receive) -> bytes:
    """Raises `TooLarge`, or `ClientGone` when the client goes away in the middle."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise TooLarge(f"the body is larger than {MAX_BODY} bytes")
        if not message.get("more_body", False):
            return bytes(body)


async def _report_disconnect(receive: Receive, inbox: Inbox) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        while (await receive())["type"] != "http.disconnect":
            pass
        inbox.put(Event.CLIENT_GONE)
