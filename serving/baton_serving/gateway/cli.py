"""`baton gateway`: run the gateway until a signal ends it."""

from __future__ import annotations

import asyncio
import os
import signal
from argparse import ArgumentParser, Namespace
from pathlib import Path

import uvloop

from baton_bootstrap.announce import announce
from baton_bootstrap.auth import read_token
from baton_bootstrap.client.link import parse_addresses
from baton_bootstrap.errors import SetupError
from baton_serving import logs
from baton_serving.errors import ConfigError
from baton_serving.gateway.policies import POLICIES
from baton_serving.gateway.routing import RoutingConfig
from baton_serving.gateway.server import Gateway, GatewayConfig


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port of the OpenAI endpoint; 0: any")
    parser.add_argument(
        "--bootstrap-addr",
        default="127.0.0.1:8998",
        help="host:port of the bootstrap server; several replicas separated by commas",
    )
    parser.add_argument("--policy", choices=list(POLICIES), default="power_of_two", help="how workers are chosen")
    parser.add_argument("--attempts", type=int, default=3, help="pairs tried before a request fails")
    parser.add_argument(
        "--worker-wait", type=float, default=1.0, help="seconds that a request waits when no worker is ready"
    )
    parser.add_argument("--announce-file", type=Path, help="write the address here as JSON once the port answers")
    parser.add_argument(
        "--token-file", type=Path, help="file with the bootstrap server's token (default: $BATON_TOKEN_FILE)"
    )
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"], help="log level")


def run(args: Namespace) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status."""
    logs.configure("gateway", args.log_level)
    uvloop.run(_serve(_config(args), args.announce_file))
    return 0


def _config(args: Namespace) -> GatewayConfig:
    if args.attempts < 1:
        raise ConfigError("--attempts must be at least 1: pairs tried before a request fails")
    if args.worker_wait < 0:
        raise ConfigError("--worker-wait must not be negative: seconds that a request waits for a worker")
    token_file = args.token_file or os.environ.get("BATON_TOKEN_FILE")
    try:
        return GatewayConfig(
            bootstrap=parse_addresses(args.bootstrap_addr),
            host=args.host,
            port=args.port,
            routing=RoutingConfig(policy=args.policy, attempts=args.attempts, worker_wait=args.worker_wait),
            token=read_token(Path(token_file) if token_file else None),
        )
    except SetupError as error:
        raise ConfigError(str(error)) from error


async def _serve(config: GatewayConfig, announce_file: Path | None) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    gateway = Gateway(config)
    await gateway.start()
    url = f"http://{config.host}:{gateway.port}"
    announce({"service": "gateway", "pid": os.getpid(), "http": url}, announce_file)
    await stopped.wait()
    await gateway.stop()
