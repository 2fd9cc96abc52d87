"""`baton bootstrap`: run the bootstrap server until a signal ends it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from baton_bootstrap.announce import announce
from baton_bootstrap.auth import read_token
from baton_bootstrap.errors import SetupError
from baton_bootstrap.server import BootstrapServer, ServerConfig
from baton_bootstrap.tls import tls_files

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8998, help="gRPC port for workers and gateways; 0: any")
    parser.add_argument("--http-port", type=int, default=8999, help="HTTP port for people and probes; 0: any")
    parser.add_argument("--lease", type=float, default=3.0, help="seconds after which a silent worker is gone")
    parser.add_argument("--announce-file", type=Path, help="write the addresses here as JSON once both ports answer")
    parser.add_argument(
        "--token-file", type=Path, help="file with a token that every peer must show (default: $BATON_TOKEN_FILE)"
    )
    parser.add_argument(
        "--http-token-file", type=Path, help="file with the token of the HTTP port, where it is not that of the peers"
    )
    parser.add_argument("--ssl-certfile", help="certificate chain (PEM) of the gRPC port, taken over when it changes")
    parser.add_argument("--ssl-keyfile", help="key of the certificate")
    parser.add_argument("--ssl-ca-certs", help="authority that the certificates of workers and gateways must come from")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code."""
    if args.lease <= 0:
        print("--lease must be positive: seconds after which a silent worker is gone", file=sys.stderr)
        return 2
    token_file = args.token_file or os.environ.get("BATON_TOKEN_FILE")
    try:
        config = ServerConfig(
            host=args.host,
            port=args.port,
            http_port=args.http_port,
            lease=args.lease,
            token=read_token(Path(token_file) if token_file else None),
            http_token_file=args.http_token_file,
            tls=tls_files(args.ssl_certfile, args.ssl_keyfile, args.ssl_ca_certs),
        )
        asyncio.run(_serve(config, args.announce_file))
    except SetupError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


async def _serve(config: ServerConfig, announce_file: Path | None) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    server = BootstrapServer(config)
    await server.start()
    announce(
        {
            "service": "bootstrap",
            "pid": os.getpid(),
            "grpc": f"{config.host}:{server.port}",
            "http": f"http://{config.host}:{server.http_port}",
        },
        announce_file,
    )
    await stopped.wait()
    await server.stop()
