"""The bootstrap server as one object: a gRPC port, an HTTP port and the sweep of the registry, on the running loop."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import uvicorn

from baton_bootstrap.auth import read_token
from baton_bootstrap.errors import SetupError
from baton_bootstrap.hosted import HostedServer
from baton_bootstrap.metrics import Metrics
from baton_bootstrap.registry import Registry
from baton_bootstrap.service import BEATS_PER_LEASE, RegistryService
from baton_bootstrap.tls import TlsFiles, server_credentials
from baton_bootstrap.web import create_app
from baton_bootstrap.wire import MAX_MESSAGE
from baton_bootstrap.wire.generated.registry_pb2_grpc import add_RegistryServicer_to_server

_GRPC_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a port in use is an error, not a shared port
    ("grpc.keepalive_time_ms", 10_000),  # a host that vanished without a word costs a stream for at most 15 s
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_send_message_length", MAX_MESSAGE),
)


@dataclass(frozen=True)
class ServerConfig:
    """Ports may be 0: the system picks. `lease` is in seconds: a worker silent that long is gone.

    `tls` guards the gRPC port; the HTTP port says nothing secret without the token in `http_token_file`, which may
    change, or `token` where there is no such file.
    """

    host: str = "127.0.0.1"
    port: int = 0
    http_port: int = 0
    lease: float = 3.0
    token: str | None = None
    http_token_file: Path | None = None
    tls: TlsFiles | None = None


class BootstrapServer:
    """`start`, then `port` and `http_port` are known; `stop` ends all streams at once: the state is soft."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.port = 0
        self.http_port = 0
        self.registry = Registry(
            instance=secrets.token_hex(16), lease=config.lease, clock=time.monotonic, warming=config.lease
        )
        metrics = Metrics(self.registry)
        self._service = RegistryService(self.registry, metrics, config.token)
        self._grpc: grpc.aio.Server | None = None
        app = create_app(self.registry, metrics, self._http_token, self._service.assigned)
        self._web = HostedServer(uvicorn.Config(app, log_level="warning", lifespan="off"))
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Bind both ports. Raises `SetupError` when one cannot be had, or a token not be read."""
        self._http_token()
        http_socket = _listen(self.config.host, self.config.http_port)
        self.http_port = http_socket.getsockname()[1]
        self._grpc = grpc.aio.server(options=_GRPC_OPTIONS)
        add_RegistryServicer_to_server(self._service, self._grpc)  # type: ignore[no-untyped-call]
        try:
            self.port = self._open(self._grpc)
        except RuntimeError as error:
            http_socket.close()
            raise SetupError(_in_use(self.config.host, self.config.port)) from error
        await self._grpc.start()
        self._tasks = [
            asyncio.create_task(self._web.serve(sockets=[http_socket])),
            asyncio.create_task(self._sweep()),
        ]

    def _http_token(self) -> str | None:
        return self.config.token if self.config.http_token_file is None else read_token(self.config.http_token_file)

    def _open(self, server: grpc.aio.Server) -> int:
        address, tls = f"{self.config.host}:{self.config.port}", self.config.tls
        if tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, server_credentials(tls))

    async def stop(self) -> None:
        web, sweep = self._tasks
        sweep.cancel()
        self._web.should_exit = True
        if self._grpc is not None:
            await self._grpc.stop(grace=None)
        await asyncio.gather(web, sweep, return_exceptions=True)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self.config.lease / BEATS_PER_LEASE / 2)
            self._service.refresh()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise SetupError(_in_use(host, port)) from error


def _in_use(host: str, port: int) -> str:
    return f"cannot listen on {host}:{port}; choose a free port, or 0 to be given one, and a host of this machine"
