"""A process that follows as rank 1, for tests whose own process is rank 0."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import zmq
from support.local_worker import FLAGS, LocalWorker

from baton_serving.config import config_from_values
from baton_serving.runtime.channels import Addresses
from baton_serving.runtime.facts import resolve_here
from baton_serving.runtime.followers import Followers, follow
from baton_serving.runtime.rank import build_rank
from baton_serving.runtime.rank_sockets import RankSockets
from baton_serving.runtime.weights import RankWeights


def _main(orders: Connection) -> None:
    """Follow one rank 0 after the other, until the pipe ends."""
    torch.set_num_threads(1)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    while True:
        try:
            flags, addresses = orders.recv()
        except EOFError:
            return
        rank = build_rank(resolve_here(config_from_values(flags)), 1, addresses.rendezvous)
        follow(rank.executor, 1, context, addresses, RankWeights(rank).handlers, lambda: None)
        rank.parallel.close()
        orders.send("left")


class SecondRank:
    """Started once, since importing the engine takes a spawned process seconds."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._orders, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(theirs,))
        self._process.start()
        theirs.close()

    @contextmanager
    def worker(self, path: Path, **flags: Any) -> Iterator[LocalWorker]:
        """A worker of two ranks, of which this process is the first."""
        flags = {**flags, "tp_size": 2}
        addresses = Addresses.create(2)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        sockets = RankSockets(context, addresses)
        followers = Followers(sockets, timeout=60)
        self._orders.send(({"model_path": str(path), **FLAGS, **flags}, addresses))
        worker = LocalWorker(path, rendezvous=addresses.rendezvous, followers=followers, **flags)
        sockets.meet(60, transfers=False)
        try:
            yield worker
        finally:
            followers.stop()
            sockets.close()
            assert self._orders.poll(60), "rank 1 did not leave"
            self._orders.recv()
            worker.rank.parallel.close()
            context.term()
            addresses.remove()

    def close(self) -> None:
        self._orders.close()
        self._process.join()
        assert self._process.exitcode == 0
