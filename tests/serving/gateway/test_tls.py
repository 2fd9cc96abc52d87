"""TLS from client to gateway, gateway to workers, and everyone to the bootstrap server; renewed while in use."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import aiohttp
import pytest
from fastapi import FastAPI, Response
from support.certificates import Authority

from baton_bootstrap.client import RegistrationClient, WatchClient, assign
from baton_bootstrap.errors import SetupError
from baton_bootstrap.files import stamp
from baton_bootstrap.records import Beat, Role, State, Worker
from baton_bootstrap.server import BootstrapServer, ServerConfig
from baton_bootstrap.tls import Tls, TlsFiles, tls_files
from baton_serving.api.server import http_server
from baton_serving.gateway.server import GatewayConfig, GatewayProcess, bind


class Site:
    """Bootstrap server, a worker of uvicorn and a gateway, each with certificates of its own in a folder."""

    def __init__(self, root: Path, authority: Authority) -> None:
        self.root = root
        self.parts = ("bootstrap", "worker", "gateway", "public")
        self.renew(authority)
        files = {name: self.files(name) for name in self.parts}
        self.worker_tls = Tls(files["worker"])
        self._bootstrap = BootstrapServer(ServerConfig(tls=files["bootstrap"]))
        self._ports: list[int] = []
        self.connections = 0

    def files(self, name: str) -> TlsFiles:
        folder = self.root / name
        files = TlsFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")
        return replace(files, authority=None) if name == "public" else files

    def renew(self, authority: Authority, *trusted: Authority) -> None:
        for name in self.parts:
            authority.write(self.root / name, *trusted)

    async def renewed(self) -> None:
        """Return once worker and gateway use the newest files: only then may the next step of a change follow."""
        gateway = self.gateway
        in_use = [tls for tls in (self.worker_tls, gateway._tls, gateway._worker_tls) if tls is not None]
        while True:
            if all(tls._stamp == stamp(tls.files.paths) for tls in in_use):
                return
            await asyncio.sleep(0.02)

    async def taken_over(self, context: ssl.SSLContext, url: str) -> None:
        """Return once the gateway shows its newest certificate: it looks at the files every second."""
        while True:
            try:
                await ask(url, context)
            except aiohttp.ClientConnectorCertificateError:
                await asyncio.sleep(0.1)
            else:
                return

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            self.worker_tls.refresh()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """The gateway's URL."""
        await self._bootstrap.start()
        address = f"127.0.0.1:{self._bootstrap.port}"
        listener = bind("127.0.0.1", 0)
        listener.listen()
        app = FastAPI()
        app.add_api_route("/tokenize", lambda: Response(headers={"connection": "close"}), methods=["POST"])
        server = http_server(app, tls=self.worker_tls.server)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        refreshing = asyncio.create_task(self._refresh())
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        worker = Worker(id="w", incarnation="w1", epoch=1, role=Role.BOTH, http_url=url, model="m", weight_digest="d")
        ticks = count()
        files = self.files("worker")
        self.registration = RegistrationClient(
            address, worker, lambda: Beat(state=State.READY, tick=next(ticks)), tls=files
        )
        await self.registration.start()
        await self.registration.registered()
        config = GatewayConfig((address,), tls=self.files("public"), worker_tls=self.files("gateway"))
        gateway = self.gateway = GatewayProcess(config)
        door = bind("127.0.0.1", 0)
        await gateway.start(door)
        try:
            yield f"https://127.0.0.1:{door.getsockname()[1]}"
        finally:
            await gateway.stop()
            await self.registration.aclose()
            server.should_exit = True
            await serving
            refreshing.cancel()
            await self._bootstrap.stop()


def trusting(*authorities: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata="".join(one.pem.decode() for one in authorities))


async def ask(url: str, context: ssl.SSLContext) -> int:
    """One request on a connection of its own."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
        session.post(f"{url}/tokenize", json={"model": "m"}, ssl=context, server_hostname="baton") as response,
    ):
        await response.read()
        return response.status


async def test_certificates_are_renewed_under_requests(tmp_path: Path) -> None:
    """Old authority, then both, then the new one alone: no request fails; in the end the old one is worth nothing."""
    old, new = Authority("old"), Authority("new")
    site = Site(tmp_path, old)
    async with site.running() as url:
        steps = [(old, new), (new, old), (new,)]

        async def keep_asking() -> None:
            while True:
                assert await ask(url, trusting(old, new)) == 200
                if not steps:
                    return

        asking = [asyncio.create_task(keep_asking()) for _ in range(3)]
        while steps:
            site.renew(*steps[0])
            for _ in range(4):
                assert await ask(url, trusting(old, new)) == 200
            await site.renewed()
            steps.pop(0)
        await asyncio.gather(*asking)
        await site.taken_over(trusting(new), url)
        assert await ask(url, trusting(new)) == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await ask(url, trusting(old))
        worker = next(iter(site.gateway.core.router.fleet.endpoints.values())).worker.http_url
        context = trusting(new)
        context.load_cert_chain(site.files("gateway").certificate, site.files("gateway").key)
        assert await ask(worker, context) == 200
        stale = old.write(tmp_path / "stranger", new)
        context = trusting(new)
        context.load_cert_chain(stale.certificate, stale.key)
        for stranger in (context, trusting(new)):  # signed by the old authority, and with no certificate at all
            with pytest.raises(aiohttp.ClientError):
                await ask(worker, stranger)


async def test_the_bootstrap_server_knows_its_own_only(tmp_path: Path) -> None:
    ours, theirs = Authority("ours"), Authority("theirs")
    server = BootstrapServer(ServerConfig(tls=ours.write(tmp_path / "server")))
    await server.start()
    address = f"127.0.0.1:{server.port}"
    for name, files, admitted in (
        ("ours", ours.write(tmp_path / "ours"), True),
        ("stranger", theirs.write(tmp_path / "stranger", ours), False),
        ("plain", None, False),
        ("another name", ours.write(tmp_path / "other"), True),
    ):
        async with WatchClient(address, tls=files) as watch:
            if admitted:
                assert (await asyncio.wait_for(watch.changed(0), 10)).connected == 1, name
            else:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(watch.changed(0), 0.5)
        assert await assign(address, {}, tls=files) == admitted, name
    await server.stop()
    impostor = BootstrapServer(ServerConfig(tls=ours.write(tmp_path / "impostor", name="someone-else")))
    await impostor.start()
    async with WatchClient(f"127.0.0.1:{impostor.port}", tls=ours.write(tmp_path / "ours")) as watch:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watch.changed(0), 0.5)
    await impostor.stop()


def test_files_that_do_not_fit_are_left_for_later(tmp_path: Path) -> None:
    authority = Authority("a")
    files = authority.write(tmp_path / "x")
    tls = Tls(files)
    before = tls.client
    good = files.key.read_bytes()
    files.key.write_bytes(b"half a key")
    assert not tls.refresh()
    assert tls.client is before
    files.key.write_bytes(good)
    assert tls.refresh()
    with pytest.raises(SetupError, match="cannot be used"):
        Tls(replace(files, certificate=tmp_path / "none"))
    with pytest.raises(SetupError, match="belong together"):
        tls_files("a", None, None)
    assert tls_files(None, None, None) is None
