"""Tells every replica of the bootstrap server how many requests a gateway holds because no worker is ready."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import grpc
import grpc.aio

from baton_bootstrap.auth import credentials
from baton_bootstrap.client.link import REPLY_TIMEOUT, connect, parse_addresses
from baton_bootstrap.errors import SetupError
from baton_bootstrap.tls import TlsFiles
from baton_bootstrap.wire.generated import registry_pb2 as pb

logger = logging.getLogger(__name__)


async def report_waiting(
    addresses: str | Sequence[str],
    gateway: str,
    requests: int,
    *,
    token: str | None = None,
    tls: TlsFiles | None = None,
) -> None:
    """Send the number for the gateway process named so; a server forgets it after a lease."""
    request = pb.WaitingRequest(gateway=gateway, requests=requests)
    for address in parse_addresses(addresses):
        try:
            async with connect(address, tls) as stub:
                await stub.Waiting(request, metadata=credentials(token), timeout=REPLY_TIMEOUT)
        except (grpc.aio.AioRpcError, SetupError) as error:
            logger.info("bootstrap server %s was not told of waiting requests: %s", address, error)
