"""The sockets between ranks: where they are, and who may connect to those that other machines reach."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from baton_serving.errors import InternalError
from baton_serving.runtime.channels import Addresses, Lock, Pull
from baton_serving.runtime.commands import AnyCommand, Stop
from baton_serving.runtime.rank_sockets import RankSockets


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.destroy(0)


@pytest.mark.parametrize("spread", [False, True], ids=["one node", "several"])
def test_a_follower_hears_what_rank_0_sends(context: zmq.Context[zmq.Socket[bytes]], spread: bool) -> None:
    own = Addresses.create(2)
    sockets = RankSockets(context, own.over_nodes("127.0.0.1") if spread else own)
    at = sockets.addresses
    assert (sockets.listening is not None, bool(at.key), at.reports.startswith("tcp:")) == (spread,) * 3
    with pytest.raises(InternalError, match="not all ranks came in time"):
        sockets.meet(0.0, transfers=False)
    follower: Pull[AnyCommand] = Pull(context, at.commands[0], AnyCommand, Lock(at.key), bind=False)
    sockets.meet(30.0, transfers=False)
    sockets.commands[0].send(Stop())
    assert isinstance(follower.recv(), Stop)
    own.remove()


def test_nobody_connects_without_the_key(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    own = Addresses.create(2)
    sockets = RankSockets(context, own.over_nodes("127.0.0.1"))
    other = zmq.curve_keypair()[0].decode()
    strangers = [
        Pull[AnyCommand](context, sockets.addresses.commands[0], AnyCommand, Lock(key), bind=False)
        for key in ("", other)
    ]
    assert not sockets.commands[0].has_reader(500)
    for stranger in strangers:
        stranger.close()
    own.remove()
