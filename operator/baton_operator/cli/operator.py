"""`baton operator`: look after the InferenceServices of a cluster until a signal comes."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from argparse import ArgumentParser, Namespace

from kubernetes.aio.config import ConfigException

from baton_operator.controller.operate import Options, operate
from baton_operator.controller.removal import check_removal
from baton_operator.errors import OperatorError
from baton_operator.planner import Settings


def add_arguments(parser: ArgumentParser) -> None:
    default = Settings()
    parser.add_argument("--worker-image", default=default.worker_image, help="image of workers that name none")
    parser.add_argument("--gateway-image", default=default.gateway_image, help="image of gateways that name none")
    parser.add_argument("--cluster-domain", default=default.cluster_domain, help="DNS domain of the cluster")
    parser.add_argument(
        "--namespace", action="append", default=[], help="namespace to look after, may be repeated (default: all)"
    )
    parser.add_argument("--lease", default="baton-operator", help="name of the Lease that only one operator holds")
    parser.add_argument("--host", default="0.0.0.0", help="address of /health and /metrics")
    parser.add_argument("--port", type=int, default=8080, help="port of /health and /metrics")
    parser.add_argument(
        "--resync-seconds", type=float, default=60.0, help="how often every service is looked at without an occasion"
    )
    parser.add_argument(
        "--check-removal", action="store_true", help="do no work: exit 1 and say why while there are services"
    )
    parser.add_argument("--log-level", default="info", help="least level of log lines: debug, info, warning or error")


def run(args: Namespace) -> int:
    """Exit status 0 after a signal, 1 when the Lease or the watches were lost, 2 without a cluster to talk to."""
    if args.resync_seconds <= 0:
        print("--resync-seconds must be positive", file=sys.stderr)
        return 2
    settings = Settings(
        worker_image=args.worker_image,
        gateway_image=args.gateway_image,
        namespace=os.environ.get("POD_NAMESPACE", "default"),
        cluster_domain=args.cluster_domain,
    )
    options = Options(
        settings=settings,
        identity=os.environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}",
        lease=args.lease,
        host=args.host,
        port=args.port,
        resync_seconds=args.resync_seconds,
        namespaces=tuple(args.namespace),
    )
    try:
        return asyncio.run(check_removal(options.namespaces) if args.check_removal else operate(options))
    except (ConfigException, OSError) as error:
        print(f"baton operator: {error}", file=sys.stderr)
        return 2
    except OperatorError as error:
        print(f"baton operator: {error}", file=sys.stderr)
        return 1
