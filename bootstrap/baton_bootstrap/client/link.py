"""What both clients share: channels to a replica, credentials and the pause between attempts."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc.aio

from baton_bootstrap.errors import SetupError
from baton_bootstrap.tls import PEER_NAME, TlsFiles, channel_credentials
from baton_bootstrap.wire import MAX_MESSAGE
from baton_bootstrap.wire.generated.registry_pb2_grpc import RegistryStub

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 1.0
REPLY_TIMEOUT = 5.0  # seconds for the first reply of a stream and for a look-up

# Each attempt gets a connection of its own, so that gRPC's own back-off does not add to ours.
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.enable_http_proxy", 0),
)


class Backoff:
    """Pauses between attempts at one replica: doubling up to a second, jittered so that a fleet does not march in step.

    A server that restarts thus has every worker back within about a second of answering again.
    """

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE

    def reset(self) -> None:
        self._pause = FIRST_PAUSE

    def next(self) -> float:
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return pause * random.uniform(0.5, 1.0)


@asynccontextmanager
async def connect(address: str, tls: TlsFiles | None = None) -> AsyncIterator[RegistryStub]:
    """A stub over a channel that is closed, with all its calls, at the end of the block.

    Each connection reads the certificates anew. Raises `SetupError` when they are unusable.
    """
    if tls is None:
        channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
    else:
        name = ("grpc.ssl_target_name_override", PEER_NAME)
        channel = grpc.aio.secure_channel(address, channel_credentials(tls), options=(*_OPTIONS, name))
    try:
        yield RegistryStub(channel)  # type: ignore[no-untyped-call]
    finally:
        await channel.close(None)


def parse_addresses(addresses: str | Sequence[str]) -> tuple[str, ...]:
    """`host:port` of every replica, from a list or one comma-separated text. Raises `SetupError`."""
    parts = addresses.split(",") if isinstance(addresses, str) else list(addresses)
    cleaned = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    for address in cleaned:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise SetupError(f"bootstrap address {address!r} is not host:port; write for example 127.0.0.1:8998")
    if not cleaned:
        raise SetupError("no bootstrap address given; write the host:port of each replica, separated by commas")
    return cleaned
