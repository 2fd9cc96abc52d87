"""How requests fare, read off workers' metrics."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from baton_operator.rollout.health import HealthBook, health_of

FIRST = """# TYPE baton_requests counter
baton_requests_total{outcome="stop",route="/v1"} 4
baton_requests_total{outcome="internal_error",route="/v1"} 1
"""
LATER = FIRST.replace("} 1\n", "} 3\n").replace("} 4\n", "} 10\n")


@pytest.mark.parametrize(("status", "text"), [(200, "<!DOCTYPE HTML>"), (502, FIRST), (200, "baton_requests_total")])
async def test_a_worker_that_does_not_tell_is_left_out(status: int, text: str) -> None:
    """So does a worker that is started again behind a proxy, which answers in its place."""
    answers = [(status, text), (200, FIRST), (200, LATER)]

    async def metrics(_: web.Request) -> web.Response:
        status, text = answers.pop(0)
        return web.Response(status=status, text=text)

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics)])
    book = HealthBook()
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        worker = ("d-0", "one", str(server.make_url("")).rstrip("/"))
        assert await book.look(session, [worker]) == {}
        assert health_of((await book.look(session, [worker])).values()).requests == 0
        found = health_of((await book.look(session, [worker])).values())
    assert (found.requests, found.failed) == (8, 2)
