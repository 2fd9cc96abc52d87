"""Two or more handoff workers in one process over a real backend, with pools whose every byte is known."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import TypedDict, TypeVar, Unpack

import numpy as np
import numpy.typing as npt

from baton_serving.errors import ConfigError
from baton_serving.handoff.backends.base import BackendFactory, HostMemory, TransferBackend
from baton_serving.handoff.backends.fake import FakeFabric
from baton_serving.handoff.backends.registry import BackendOptions, backend_factory
from baton_serving.handoff.control import CurveKeys
from baton_serving.handoff.events import HandoffEvent
from baton_serving.handoff.layout import PeerDescriptor, RankDescriptor, rank_slice
from baton_serving.handoff.protocol import PageSpan
from baton_serving.handoff.ranks import RankCommand, RankExecutor, RankTransfer
from baton_serving.handoff.rim import Limits, PeerAddress
from baton_serving.handoff.service import HandoffService
from baton_serving.kv.layout import KVGroup, KVLayout

Event = TypeVar("Event", bound=HandoffEvent)

LAYOUT = KVLayout(
    page_size=16,
    kv_heads=2,
    k_dim=32,
    v_dim=32,
    dtype="float32",
    groups=(KVGroup((0, 1, 2, 3)),),
)

# Pages of 512 KiB, so that a transfer takes long enough to be interrupted.
BIG = KVLayout(
    page_size=64,
    kv_heads=2,
    k_dim=128,
    v_dim=128,
    dtype="float32",
    groups=(KVGroup((0, 1, 2, 3)),),
)

_ALIGNMENT = 4096


def content(seed: int, pages: int, page_bytes: int) -> npt.NDArray[np.uint8]:
    """Random pages, no two alike and no byte 0; cheap to make."""
    noise = np.random.default_rng(seed).integers(1, 255, size=page_bytes + pages, dtype=np.uint8)
    return np.lib.stride_tricks.sliding_window_view(noise, page_bytes)[:pages]


class Pool:
    """A rank's pages in page-aligned host memory."""

    def __init__(self, page_bytes: int, pages: int) -> None:
        raw = np.zeros(page_bytes * pages + _ALIGNMENT, dtype=np.uint8)
        skip = -raw.ctypes.data % _ALIGNMENT
        self.bytes: npt.NDArray[np.uint8] = raw[skip : skip + page_bytes * pages]
        self.pages = self.bytes.reshape(pages, page_bytes)
        self.memory = HostMemory(self.bytes.ctypes.data, self.bytes.nbytes)


class ServiceOptions(TypedDict, total=False):
    """What a few tests ask of the service."""

    curve: CurveKeys
    receiver_tp: int


class Worker:
    """A worker of `tp` ranks: service, rank threads and pools."""

    def __init__(
        self,
        name: str,
        factory: BackendFactory,
        registry: dict[str, PeerAddress],
        *,
        layout: KVLayout = LAYOUT,
        tp: int = 1,
        pages: int = 64,
        limits: Limits | None = None,
        verify: bool = False,
        weights: str = "w1",
        backend: str = "fake",
        **options: Unpack[ServiceOptions],
    ) -> None:
        limits = limits or Limits()
        slices = [rank_slice(layout, tp, rank) for rank in range(tp)]
        self.name = name
        self.pools = [Pool(slice_.shape.page_bytes, pages) for slice_ in slices]
        self.incarnation = f"{name}-{time.monotonic_ns():x}"
        blank = PeerDescriptor(
            version=1,
            worker=name,
            incarnation=self.incarnation,
            weights=weights,
            engine="e1",
            layout=layout,
            tp_size=tp,
            pp_size=1,
            backend=backend,
            epoch=0,
            ranks=tuple(slices),
        )
        self.beating = True
        self.woken = threading.Event()
        self.seen: list[HandoffEvent] = []
        self.service = HandoffService(
            blank, self._command, registry.get, self.woken.set, limits=limits, verify=verify, **options
        )
        self.ranks = [
            self._rank(slice_, pool, factory, limits.write) for slice_, pool in zip(slices, self.pools, strict=True)
        ]
        try:
            self.service.start()
        except ConfigError:
            for transfer in self.ranks:
                transfer.close()
            raise
        curve = options.get("curve")
        registry[name] = PeerAddress(self.service.endpoint, self.incarnation, curve.public if curve else "")

    def _rank(self, slice_: RankDescriptor, pool: Pool, factory: BackendFactory, write_timeout: float) -> RankTransfer:
        executor = RankExecutor(
            slice_.tp_rank,
            slice_,
            pool.memory,
            factory,
            self.service.report,
            write_timeout=write_timeout,
            name=self.incarnation,
        )
        return RankTransfer(executor)

    def _command(self, rank: int, command: RankCommand) -> None:
        self.ranks[rank].submit(command)

    def fill(self, seed: int) -> None:
        """Random content in every page but page 0."""
        for rank, pool in enumerate(self.pools):
            pool.pages[1:] = content(seed + rank, *pool.pages[1:].shape)

    def wait(self, kind: type[Event], transfer: str, timeout: float = 20.0) -> Event:
        """The first event of this kind about the transfer."""
        deadline = time.monotonic() + timeout
        while True:
            self.seen.extend(self.service.events())
            for event in self.seen:
                if isinstance(event, kind) and event.transfer_id == transfer:
                    return event
            left = deadline - time.monotonic()
            assert left > 0, f"{self.name}: no {kind.__name__} for {transfer}; saw {self.seen}"
            self.woken.wait(min(left, 0.5))
            self.woken.clear()

    def close(self) -> None:
        for rank in self.ranks:
            rank.close()
        self.service.close()


def eventually(condition: Callable[[], bool], timeout: float = 20.0) -> None:
    """Poll a condition that another thread makes true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.005)


class Cluster:
    """Makes workers that find each other, and closes them."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.fabric = FakeFabric()
        self.fenced_by_close = True
        self.registry: dict[str, PeerAddress] = {}
        self.workers: list[Worker] = []
        self._stop = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._beats.start()

    def _beat(self) -> None:
        """Every worker's scheduler loop."""
        tick = 0
        while not self._stop.wait(0.05):
            tick += 1
            for worker in self.workers:
                if worker.beating:
                    worker.service.beat(tick)

    def factory(self) -> BackendFactory:
        if self.backend == "fake":
            return self.fake
        return backend_factory(self.backend, BackendOptions(host="127.0.0.1"))

    def fake(self, name: str) -> TransferBackend:
        engine = self.fabric.backend(name)
        engine.fenced_by_close = self.fenced_by_close
        return engine

    def worker(
        self,
        name: str,
        *,
        layout: KVLayout = LAYOUT,
        tp: int = 1,
        pages: int = 64,
        limits: Limits | None = None,
        verify: bool = False,
        weights: str = "w1",
        **options: Unpack[ServiceOptions],
    ) -> Worker:
        worker = Worker(
            name,
            self.factory(),
            self.registry,
            layout=layout,
            tp=tp,
            pages=pages,
            limits=limits,
            verify=verify,
            weights=weights,
            backend=self.backend,
            **options,
        )
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        self._stop.set()
        self._beats.join()
        for worker in self.workers:
            worker.close()


def send_whole(sender: Worker, receiver: Worker, transfer: str, source: list[int], target: list[int]) -> None:
    """The plain course of a transfer of one group, up to the snapshot."""
    from baton_serving.handoff.events import Begun

    sender.service.open(transfer)
    receiver.service.expect(transfer, 0, sender.name)
    sender.service.started(transfer, len(source) * LAYOUT.page_size)
    receiver.wait(Begun, transfer)
    receiver.service.announce(transfer, [PageSpan(0, 0, target)], 0)
    half = len(source) // 2
    sender.service.chunk_ready(transfer, [PageSpan(0, 0, source[:half])])
    sender.service.chunk_ready(transfer, [PageSpan(0, half, source[half:])])
    sender.service.finish(transfer, b"snapshot of " + transfer.encode())


class ChildWorker:
    """A worker in another process, see `handoff_child.py`. Its pages are filled with seed 77."""

    def __init__(self, backend: str, name: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.handoff_child", backend, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            text=True,
            bufsize=1,
        )
        self._said: queue.SimpleQueue[dict[str, object]] = queue.SimpleQueue()
        self.seen: list[dict[str, object]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def meet(self, registry: dict[str, PeerAddress]) -> None:
        """Wait until the worker serves, and put it into the registry."""
        ready = self.wait("ready", timeout=60)
        assert isinstance(ready, dict)
        registry[self.name] = PeerAddress(ready["endpoint"], ready["incarnation"])

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                self._said.put(json.loads(line))

    def call(self, method: str, *arguments: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([method, *arguments]) + "\n")
        self.process.stdin.flush()

    def wait(self, kind: str, transfer: str = "", timeout: float = 20.0) -> object:
        """The first thing of this kind that the child said, about the transfer if one is named."""
        deadline = time.monotonic() + timeout
        while True:
            for said in self.seen:
                value = said["value"]
                about = value.get("transfer_id", "") if isinstance(value, dict) else ""
                if said["kind"] == kind and (not transfer or about == transfer):
                    return value
            left = deadline - time.monotonic()
            assert left > 0, f"{self.name}: no {kind}; it said {self.seen}"
            with contextlib.suppress(queue.Empty):
                self.seen.append(self._said.get(timeout=left))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._reader.join()
