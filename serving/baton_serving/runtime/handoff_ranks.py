"""Every rank's transfer engines under one service: rank 0's in this process, the followers' behind sockets.

Transfers have sockets and threads of their own, apart from the steps: moving pages never waits for a forward pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import torch
import zmq

from baton_serving.handoff.backends.base import BackendFactory, DeviceMemory, HostMemory, PoolMemory
from baton_serving.handoff.layout import rank_slice
from baton_serving.handoff.ranks import RankCommand, RankExecutor, RankReport, RankTransfer
from baton_serving.kv.pool import KVPool
from baton_serving.runtime.channels import Addresses, Lock, Pull, Push
from baton_serving.runtime.rank import Rank
from baton_serving.runtime.rank_sockets import RankSockets

ZmqContext = zmq.Context[zmq.Socket[bytes]]


def rank_transfer(
    rank: Rank, factory: BackendFactory, report: Callable[[RankReport], None], name: str, write_timeout: float
) -> RankTransfer:
    """This rank's engines over its pool, on a thread of their own. `name` is unique per incarnation."""
    state = rank.parallel
    slice_ = rank_slice(rank.loaded.kv_layout, state.tp_size, state.tp_rank)
    executor = RankExecutor(
        state.tp_rank, slice_, pool_memory(rank.pool), factory, report, write_timeout=write_timeout, name=name
    )
    device = rank.pool.device
    return RankTransfer(executor, partial(use_device, device))


def use_device(device: torch.device) -> None:
    """Make a GPU current on the calling thread: transfer libraries look for its context and make none themselves."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.synchronize(device)  # setting the device that is current already binds no context


def pool_memory(pool: KVPool) -> PoolMemory:
    """The pool as transfer engines register it: memory of the host or of a CUDA device."""
    if pool.device.type == "cpu":
        return HostMemory(pool.base_address, pool.size_bytes)
    return DeviceMemory(pool.base_address, pool.size_bytes, pool.device.index or 0, pool.read)


class FollowerTransfers:
    """Rank 0's side: passes commands to the followers' engines and their reports to the service.

    `command` is called from the service's thread only, and reaches those who have come.
    """

    def __init__(self, sockets: RankSockets, report: Callable[[RankReport], None]) -> None:
        self._pushes = sockets.transfers
        self._reports = sockets.transfer_reports
        self._report = report
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        if self._reports is not None:
            self._thread = threading.Thread(target=self._read, args=(self._reports,), name="transfers", daemon=True)
            self._thread.start()

    def command(self, rank: int, command: RankCommand) -> None:
        self._pushes[rank - 1].send(command)

    def close(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        for push in self._pushes:
            push.close()
        if self._reports is not None:
            self._reports.close()

    def _read(self, reports: Pull[RankReport]) -> None:
        while not self._stopping.is_set():
            if reports.socket.poll(100):
                for report in reports.drain():
                    self._report(report)


class FollowerEngines:
    """A follower's side: its engines obey rank 0, on threads beside the command loop."""

    def __init__(
        self, context: ZmqContext, addresses: Addresses, rank: Rank, factory: BackendFactory, name: str, timeout: float
    ) -> None:
        lock, address = Lock(addresses.key), addresses.transfers[rank.parallel.tp_rank - 1]
        self._reports: Push[RankReport] = Push(context, addresses.transfer_reports, lock)
        self._commands: Pull[RankCommand] = Pull(context, address, RankCommand, lock, bind=False)
        self._transfer = rank_transfer(rank, factory, self._reports.send, name, timeout)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._obey, name="transfers", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._transfer.close()
        self._commands.close()
        self._reports.close()

    def _obey(self) -> None:
        while not self._stopping.is_set():
            if self._commands.socket.poll(100):
                for command in self._commands.drain():
                    self._transfer.submit(command)
