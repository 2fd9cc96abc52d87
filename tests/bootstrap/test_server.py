"""The HTTP side, and what a port that cannot be had says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from baton_bootstrap.errors import SetupError
from baton_bootstrap.records import Beat, Load, State, Worker
from baton_bootstrap.server import BootstrapServer, ServerConfig

MakeWorker = Callable[..., Worker]
StartServer = Callable[..., Awaitable[BootstrapServer]]

READY = Beat(state=State.READY, tick=4, load=Load(running=2, free_pages=7, total_pages=9))


async def get(url: str, **headers: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return response.status, await response.text()


async def test_people_and_probes_read_plain_http(start_server: StartServer, make_worker: MakeWorker) -> None:
    server = await start_server()
    server.registry.register(make_worker(), READY)
    url = f"http://127.0.0.1:{server.http_port}"
    async with aiohttp.ClientSession() as session, session.get(f"{url}/workers") as response:
        listing = await response.json()
    [row] = listing["workers"]
    assert (row["id"], row["role"], row["state"], row["tick"]) == ("prefill-0", "prefill", "ready", 4)
    assert (row["free_pages"], row["total_pages"]) == (7, 9)
    assert listing["warming"] is True
    assert await get(f"{url}/health") == (200, '{"status":"warming","workers":1}')
    status, text = await get(f"{url}/metrics")
    assert status == 200
    assert 'baton_bootstrap_workers{role="prefill",state="ready"} 1.0' in text
    assert "baton_bootstrap_warming 1.0" in text


async def test_the_list_asks_for_the_token_and_probes_do_not(start_server: StartServer) -> None:
    server = await start_server(token="s3cret")
    url = f"http://127.0.0.1:{server.http_port}"
    assert (await get(f"{url}/workers"))[0] == 401
    for header in ("authorization", "x-baton-authorization"):
        assert (await get(f"{url}/workers", **{header: "Bearer s3cret"}))[0] == 200
        assert (await get(f"{url}/workers", **{header: "Bearer other"}))[0] == 401
    assert (await get(f"{url}/health"))[0] == 200


async def test_the_http_port_may_have_a_token_of_its_own(start_server: StartServer, tmp_path: Path) -> None:
    """Whoever manages the peers need not be one; a renewed token counts at once."""
    file = tmp_path / "token"
    file.write_text("first")
    server = await start_server(token="s3cret", http_token_file=file)
    url = f"http://127.0.0.1:{server.http_port}/workers"
    assert (await get(url, authorization="Bearer first"))[0] == 200
    assert (await get(url, authorization="Bearer s3cret"))[0] == 401
    file.write_text("second")
    assert (await get(url, authorization="Bearer first"))[0] == 401
    assert (await get(url, authorization="Bearer second"))[0] == 200


async def test_a_port_in_use_is_named(start_server: StartServer) -> None:
    server = await start_server()
    for config in (ServerConfig(port=server.port), ServerConfig(http_port=server.http_port)):
        with pytest.raises(SetupError, match=r"choose a free port"):
            await BootstrapServer(config).start()


async def test_servers_on_one_host_do_not_clash(start_server: StartServer) -> None:
    ports = {port for _ in range(3) for server in [await start_server()] for port in (server.port, server.http_port)}
    assert len(ports) == 6
