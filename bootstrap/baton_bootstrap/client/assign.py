"""Tells every replica of the bootstrap server what workers are to serve, and asks for it."""

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


async def assigned(
    addresses: str | Sequence[str], names: Sequence[str], *, token: str | None = None, tls: TlsFiles | None = None
) -> Assignment | None:
    """What the first of `names` is to serve that has an assignment, as the first replica says that knows any."""
    request = pb.AssignedRequest(names=names)
    for address in parse_addresses(addresses):
        try:
            async with connect(address, tls) as stub:
                reply = await stub.Assigned(request, metadata=credentials(token), timeout=REPLY_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            logger.warning("bootstrap server %s knows no assignment of %s: %s", address, names[0], error.details())
            continue
        if reply.HasField("assignment"):
            return codec.assignment_from_wire(reply.assignment)
    return None
