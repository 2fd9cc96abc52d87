"""What the handoff core needs from the outside. The service implements it with sockets, tests with lists."""

from __future__ import annotations

from typing import Protocol

import msgspec

from baton_serving.handoff.events import HandoffEvent
from baton_serving.handoff.ranks import RankCommand

REMEMBERED = 8192  # ended transfers that are still known, so that late messages are told from strange ones


class PeerAddress(msgspec.Struct, frozen=True):
    """Where a registered peer's control socket listens, who it must be (empty: anyone), its CURVE key (empty: none)."""

    endpoint: str
    incarnation: str = ""
    public_key: str = ""


class Rim(Protocol):
    """Effects of the core. None blocks, none raises; what goes wrong comes back as an event."""

    def dial(self, connection: int, address: PeerAddress) -> None:
        """Open a connection; frames may be sent on it at once."""

    def send(self, connection: int, frame: bytes) -> None: ...

    def hang_up(self, connection: int) -> None: ...

    def resolve(self, peer_key: str) -> None:
        """Look the key up among registered peers; the answer comes back through `HandoffCore.resolved`."""

    def command(self, rank: int, command: RankCommand) -> None:
        """Pass a command to a rank, in order."""

    def emit(self, event: HandoffEvent) -> None: ...


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds. None of them frees a page: they end waiting and start a fence.

    `lease`: silence after which a peer is suspected. `stall`: how long its scheduler may stand still undeclared.
    `connect`: from dialling to the handshake. `early_join`: how long a join waits for the prefill to know the request.
    `join`: how long a finished prefill waits for a join. `pages`: how long it waits for the pages. `ack`: for the
    receipt. `write`: one batch of writes. `grace`: from a failure to a fence, so that writes may end by themselves.
    `move`: how long a fence waits for healthy transfers. `transfer`: bound on a whole arrival.
    """

    heartbeat: float = 0.25
    lease: float = 3.0
    stall: float = 5.0
    connect: float = 5.0
    early_join: float = 30.0
    join: float = 30.0
    pages: float = 120.0
    ack: float = 15.0
    write: float = 10.0
    grace: float = 1.0
    move: float = 2.0
    transfer: float = 600.0
