"""Tells every replica of the bootstrap server what workers are to serve."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import grpc
import grpc.aio

from baton_bootstrap.auth import credentials
from baton_bootstrap.client.link import REPLY_TIMEOUT, connect, parse_addresses
from baton_bootstrap.records import Assignment
from baton_bootstrap.tls import TlsFiles
from baton_bootstrap.wire import codec
from baton_bootstrap.wire.generated import registry_pb2 as pb

logger = logging.getLogger(__name__)


async def assign(
    addresses: str | Sequence[str],
    assignments: Mapping[str, Assignment],
    *,
    token: str | None = None,
    tls: TlsFiles | None = None,
) -> int:
    """Send all assignments, by worker id, to each replica; returns how many took them.

    They are soft state there: send them again and again. Raises `SetupError` when `tls` is unusable.
    """
    request = pb.AssignRequest(
        assignments={worker_id: codec.assignment_to_wire(one) for worker_id, one in assignments.items()}
    )
    taken = 0
    for address in parse_addresses(addresses):
        try:
            async with connect(address, tls) as stub:
                await stub.Assign(request, metadata=credentials(token), timeout=REPLY_TIMEOUT)
            taken += 1
        except grpc.aio.AioRpcError as error:
            logger.warning("bootstrap server %s took no assignments: %s", address, error.details())
    return taken
