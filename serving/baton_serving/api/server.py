"""Listening: the port is taken before anything slow starts, and uvicorn serves the app on it."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from baton_serving.errors import ConfigError


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one. Raises ConfigError when the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"--host {host}: {error.strerror or error}") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"--port {port}: {host}:{port} cannot be listened on ({error.strerror}); choose another port"
        ) from error
    listener.setblocking(False)
    return listener


class _Server(uvicorn.Server):
    """Leaves signals to the process, which drains before it stops the server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_server(app: FastAPI, log_level: str = "warning", tls: ssl.SSLContext | None = None) -> uvicorn.Server:
    """A server for `await server.serve(sockets=[bind(...)])`, which ends once `should_exit` is set."""
    config = uvicorn.Config(
        app,
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        log_level=log_level,
        access_log=False,
        timeout_keep_alive=75,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    config.load()
    config.ssl = tls
    return _Server(config)
