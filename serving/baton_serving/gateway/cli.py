"""`baton gateway`: run the gateway until a signal ends it."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import uvloop

from baton_bootstrap.announce import announce
from baton_bootstrap.auth import read_token
from baton_bootstrap.client.link import parse_addresses
from baton_bootstrap.errors import SetupError
from baton_bootstrap.tls import tls_files
from baton_serving import logs
from baton_serving.errors import ConfigError
from baton_serving.gateway.admission.door import DoorConfig
from baton_serving.gateway.admission.ledger import Limits
from baton_serving.gateway.core import Patience
from baton_serving.gateway.health import HealthConfig
from baton_serving.gateway.policies import POLICIES
from baton_serving.gateway.processes import run_processes
from baton_serving.gateway.routing import RoutingConfig
from baton_serving.gateway.server import GatewayConfig, GatewayProcess, bind
from baton_serving.tracing import DEFAULT_ENDPOINT

_ADMISSION_LEAST = {
    "max_running_requests": 1,
    "max_queued_requests": 0,
    "queue_timeout": 0,
    "key_requests": 1,
    "key_tokens_per_minute": 1,
}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port of the OpenAI endpoint; 0: any")
    parser.add_argument(
        "--bootstrap-addr",
        default="127.0.0.1:8998",
        help="host:port of the bootstrap server; several replicas separated by commas",
    )
    _add_routing(parser)
    _add_limits(parser)
    _add_admission(parser)
    parser.add_argument("--processes", type=int, default=1, help="processes that share the port, one per core")
    parser.add_argument("--access-log", type=Path, help="write a JSON line here for every request that ends")
    parser.add_argument("--announce-file", type=Path, help="write the address here as JSON once the port answers")
    parser.add_argument(
        "--token-file", type=Path, help="file with the bootstrap server's token (default: $BATON_TOKEN_FILE)"
    )
    _add_security(parser)
    parser.add_argument("--enable-trace", action="store_true", help="send OpenTelemetry spans of every request")
    parser.add_argument(
        "--otlp-traces-endpoint",
        default=DEFAULT_ENDPOINT,
        help="where the spans go: host:port (gRPC) or http://host:port (HTTP)",
    )
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"], help="log level")


def _add_routing(parser: ArgumentParser) -> None:
    routing = RoutingConfig()
    parser.add_argument("--policy", choices=list(POLICIES), default=routing.policy, help="how workers are chosen")
    parser.add_argument(
        "--decode-policy", choices=list(POLICIES), default="", help="how decode workers are chosen (default: --policy)"
    )
    parser.add_argument("--attempts", type=int, default=routing.attempts, help="pairs tried before a request fails")
    parser.add_argument(
        "--worker-wait",
        type=float,
        default=routing.worker_wait,
        help="seconds that a request waits when no worker is ready",
    )
    parser.add_argument(
        "--migrate-wait",
        type=float,
        default=routing.migrate_wait,
        help="seconds that a request whose worker was lost waits for another",
    )
    parser.add_argument(
        "--divide-from",
        type=int,
        default=routing.divide_from,
        help="prompts of fewer uncached tokens are served by a decode worker alone; 0: none are",
    )


def _add_limits(parser: ArgumentParser) -> None:
    patience, health = Patience(), HealthConfig()
    parser.add_argument(
        "--stall-timeout", type=float, default=patience.stall, help="seconds that a stream may be silent in the middle"
    )
    parser.add_argument(
        "--first-byte-timeout", type=float, default=patience.first_byte, help="seconds until the first byte must come"
    )
    parser.add_argument(
        "--health-interval", type=float, default=health.interval, help="seconds between two health checks of a worker"
    )
    parser.add_argument(
        "--health-timeout",
        type=float,
        default=health.timeout,
        help="seconds after which a worker that answers no health check is given up",
    )
    parser.add_argument("--max-body-bytes", type=int, default=64 * 1024 * 1024, help="largest request body taken")
    parser.add_argument(
        "--max-buffered-bytes",
        type=int,
        default=1024 * 1024 * 1024,
        help="bodies of all open requests together; what would go beyond is refused with 503",
    )
    parser.add_argument(
        "--grace", type=float, default=30.0, help="seconds that open requests have to end after SIGTERM"
    )


def _add_admission(parser: ArgumentParser) -> None:
    door = DoorConfig()
    parser.add_argument(
        "--max-running-requests",
        type=int,
        help="requests that are let in at once; the others wait (default: any number)",
    )
    parser.add_argument(
        "--max-queued-requests", type=int, default=door.max_queued, help="requests that may wait to be let in"
    )
    parser.add_argument(
        "--queue-timeout", type=float, default=door.queue_seconds, help="seconds that a request waits to be let in"
    )
    parser.add_argument("--key-requests", type=int, help="requests of one API key at once (default: any number)")
    parser.add_argument(
        "--key-tokens-per-minute",
        type=int,
        help="tokens, of prompts and answers, of one API key in a minute (default: any number)",
    )


def _add_security(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--api-keys",
        type=Path,
        help="file with a line `NAME KEY` per client key, or a folder (a mounted Secret) with a file NAME per key; "
        "behind a key, its own limits: requests=N tokens-per-minute=N; taken over when it changes",
    )
    parser.add_argument(
        "--worker-api-key-file",
        type=Path,
        help="file with the API key of the workers, where these were started with --api-key",
    )
    parser.add_argument(
        "--probe-port",
        type=int,
        help="port that answers /health, /metrics, /v1/baton/workers and /v1/baton/versions alone, without an API key "
        "and never with TLS: for probes, scrapers and the operator, which have none; 0: any (default: none)",
    )
    parser.add_argument("--ssl-certfile", help="certificate chain (PEM) for clients, taken over when it changes")
    parser.add_argument("--ssl-keyfile", help="key of the certificate")
    parser.add_argument("--ssl-ca-certs", help="authority that clients' certificates must come from (default: none)")
    parser.add_argument(
        "--worker-ssl-certfile", help="certificate chain (PEM) to show to workers and bootstrap servers"
    )
    parser.add_argument("--worker-ssl-keyfile", help="key of that certificate")
    parser.add_argument("--worker-ssl-ca-certs", help="authority of the workers' and bootstrap servers' certificates")


def run(args: Namespace) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status."""
    logs.configure("gateway", args.log_level)
    config = _config(args)
    _allow_connections()
    scheme = "http" if config.tls is None else "https"

    def tell(taken: GatewayConfig) -> None:
        facts: dict[str, str | int] = {"service": "gateway", "pid": os.getpid()}
        facts["http"] = f"{scheme}://{taken.host}:{taken.port}"
        if taken.probe_port is not None:
            facts["probes"] = f"http://{taken.host}:{taken.probe_port}"
        announce(facts, args.announce_file)

    if args.processes > 1:
        return run_processes(config, args.processes, tell)
    uvloop.run(_serve(config, tell))
    return 0


def _allow_connections() -> None:
    """Open as many files as this user may: each connection is one, and the usual limit is 1,024."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _config(args: Namespace) -> GatewayConfig:
    for name, least in (("attempts", 1), ("worker_wait", 0), ("migrate_wait", 0), ("divide_from", 0), ("processes", 1)):
        if getattr(args, name) < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}")
    for name, least in _ADMISSION_LEAST.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}")
    for name in ("stall_timeout", "first_byte_timeout", "health_interval", "health_timeout", "max_body_bytes", "grace"):
        if getattr(args, name) <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be more than 0")
    if args.max_buffered_bytes // args.processes < args.max_body_bytes:
        raise ConfigError("--max-buffered-bytes must hold a body of --max-body-bytes for each of --processes")
    token_file = args.token_file or os.environ.get("BATON_TOKEN_FILE")
    try:
        return GatewayConfig(
            bootstrap=parse_addresses(args.bootstrap_addr),
            host=args.host,
            port=args.port,
            probe_port=args.probe_port,
            routing=RoutingConfig(
                policy=args.policy,
                decode_policy=args.decode_policy,
                attempts=args.attempts,
                worker_wait=args.worker_wait,
                migrate_wait=args.migrate_wait,
                divide_from=args.divide_from,
            ),
            door=DoorConfig(
                max_running=args.max_running_requests,
                max_queued=args.max_queued_requests,
                queue_seconds=args.queue_timeout,
                limits=Limits(args.key_requests, args.key_tokens_per_minute),
            ),
            patience=Patience(stall=args.stall_timeout, first_byte=args.first_byte_timeout),
            health=HealthConfig(interval=args.health_interval, timeout=args.health_timeout),
            body_limit=args.max_body_bytes,
            bodies_limit=args.max_buffered_bytes,
            grace=args.grace,
            access_log=args.access_log,
            api_keys=args.api_keys,
            traces=args.otlp_traces_endpoint if args.enable_trace else None,
            tls=tls_files(args.ssl_certfile, args.ssl_keyfile, args.ssl_ca_certs),
            worker_tls=tls_files(
                args.worker_ssl_certfile, args.worker_ssl_keyfile, args.worker_ssl_ca_certs, "--worker-ssl"
            ),
            token=read_token(Path(token_file) if token_file else None),
            worker_key=_worker_key(args.worker_api_key_file),
        )
    except SetupError as error:
        raise ConfigError(str(error)) from error


def _worker_key(path: Path | None) -> str | None:
    try:
        key = read_token(path)
    except SetupError as error:
        raise ConfigError(f"--worker-api-key-file: {error}") from error
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ConfigError(f"--worker-api-key-file {path}: a key is one line of ASCII characters")
    return key


async def _serve(config: GatewayConfig, ready: Callable[[GatewayConfig], None]) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    listener, probes = bind(config.host, config.port), None
    if config.probe_port is not None:
        probes = bind(config.host, config.probe_port, flag="--probe-port")
        config = replace(config, probe_port=probes.getsockname()[1])
    process = GatewayProcess(config)
    await process.start(listener, probes)
    ready(replace(config, port=listener.getsockname()[1]))
    await stopped.wait()
    await process.stop()
