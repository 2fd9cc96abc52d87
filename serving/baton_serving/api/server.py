"""Listening: the port is taken before anything slow starts, and uvicorn serves the app on it."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from baton_serving.errors import ConfigError


def bind(host: str, port: int, flag: str = "--port") -> socket.socket:
    """A listening TCP socket; port 0 takes a free one. Raises ConfigError when the address cannot be had."""
    listener = _bound(flag, host, port)
    listener.listen(2048)
    listener.setblocking(False)
    return listener


@contextlib.contextmanager
def reserve(flag: str, host: str, port: int | None) -> Iterator[None]:
    """Keep a port for a server that will share it (SO_REUSEPORT), as gRPC's does; nothing to do for None and 0.

    Such a server starts on a port in use as well, and would then get some of the other's calls. Raises ConfigError
    when the address cannot be had.
    """
    if not port:
        yield
        return
    _bound(flag, host, port).close()
    with _bound(flag, host, port, share=True):
        yield


def _bound(flag: str, host: str, port: int, *, share: bool = False) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"--host {host}: {error.strerror or error}") from error
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if share else socket.SO_REUSEADDR, 1)
        bound.bind(address)
        if not share:
            bound.listen()  # with SO_REUSEADDR only this tells whether somebody else does
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"{flag} {port}: {host}:{port} cannot be listened on ({error.strerror}); choose another port"
        ) from error
    return bound


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
