"""The watches, by kopf against the few routes of an API server that it asks."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from baton_operator.controller.resources import SERVICES
from baton_operator.controller.watching import watch

SERVICE = {"metadata": {"namespace": "prod", "name": "chat", "uid": "1", "resourceVersion": "1"}}


@pytest.fixture
async def api_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Knows namespaces and our services alone, lists one of these, and never tells anything more."""
    app, over = web.Application(), asyncio.Event()
    verbs = ["get", "list", "watch"]
    kind = {"name": SERVICES.plural, "singularName": "", "kind": SERVICES.kind, "namespaced": True, "verbs": verbs}
    namespaces = {"name": "namespaces", "singularName": "", "kind": "Namespace", "namespaced": False, "verbs": verbs}
    group = {"name": SERVICES.group, "versions": [{"version": "v1alpha1"}], "preferredVersion": {"version": "v1alpha1"}}
    bodies = {
        "/api": {"versions": ["v1"]},
        "/api/v1": {"resources": [namespaces]},
        "/apis": {"groups": [group]},
        f"/apis/{SERVICES.api_version}": {"resources": [kind]},
    }

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path != SERVICES.path(None):
            return web.json_response(bodies[request.path])
        if "watch" not in request.query:
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": [SERVICE]})
        stream = web.StreamResponse()
        await stream.prepare(request)
        await over.wait()
        return stream

    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    config = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "clusters": [{"name": "here", "cluster": {"server": f"http://{host}:{port}"}}],
        "users": [{"name": "me", "user": {"token": "t"}}],
    }
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    yield
    over.set()
    await runner.cleanup()


async def test_the_end_of_the_watches_is_no_concern_of_other_tasks(api_server: None) -> None:
    told: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def changed(key: tuple[str, str], delay: float) -> None:
        assert asyncio.get_running_loop() is loop
        told.put_nowait(key)

    async def look_up() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None

    watching = asyncio.create_task(watch(changed, (), frozenset()))
    assert await told.get() == ("prod", "chat")
    stranger = asyncio.create_task(look_up())
    await asyncio.sleep(0)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert not stranger.done()
    stranger.cancel()
    with pytest.raises(socket.gaierror):
        await stranger
