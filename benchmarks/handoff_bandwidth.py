"""How fast a real pool's pages move to another process, beside what the machine and the bare libraries can do.

    python benchmarks/handoff_bandwidth.py --backends mooncake nixl --output-json bandwidth.json

Two processes on this host, scattered pages in host memory, the same bytes by every way, round by round in one run:
a memcpy within one process, a plain socket, a bare write of the same blocks through the library, and the handoff
service from the first `chunk_ready` until the receiver's receipt. All ways take turns, so that each handoff has a bare
write of the same moment beside it. Prints GB/s, median and best of the rounds, and the median over turns of what a
handoff reached of the bare write of its turn, best against best: on a busy machine only that compares.

    python benchmarks/handoff_bandwidth.py --device cuda --page-size 64 --backends mooncake --protocol nvlink_intra

The same from one GPU's memory to the next one's, where the floor is a copy between the two within one process.
`--receiver-tp 2` splits the receiver's heads over two ranks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import socket
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from rich.console import Console
from rich.table import Table

from baton_serving.handoff.backends.base import DeviceMemory, HostMemory, Outcome, PoolMemory, TransferBackend
from baton_serving.handoff.backends.registry import BackendOptions, backend_factory
from baton_serving.handoff.events import Arrived, Begun, Delivered, HandoffEvent
from baton_serving.handoff.layout import PROTOCOL_VERSION, PeerDescriptor, rank_slice
from baton_serving.handoff.plan import Runs, over_pages, tickets
from baton_serving.handoff.protocol import PageSpan
from baton_serving.handoff.ranks import RankExecutor, RankTransfer
from baton_serving.handoff.rim import PeerAddress
from baton_serving.handoff.service import HandoffService
from baton_serving.kv.layout import KVGroup, KVLayout
from baton_serving.runtime.handoff_ranks import use_device

HOST = "127.0.0.1"
_STEP_CYCLES = 400_000_000  # some 0.2 s
Bytes = npt.NDArray[np.uint8]


def layout_of(args: argparse.Namespace) -> KVLayout:
    return KVLayout(
        args.page_size, args.kv_heads, args.head_dim, args.head_dim, args.dtype, (KVGroup(tuple(range(args.layers))),)
    )


def scattered(seed: int, pages: int, count: int) -> list[int]:
    return [int(page) + 1 for page in np.random.default_rng(seed).permutation(pages)[:count]]


class Pool:
    """`pages` usable pages in host memory, or on a GPU."""

    def __init__(self, page_bytes: int, pages: int, device: torch.device) -> None:
        self.device = device
        self.memory: PoolMemory
        if device.type == "cpu":
            self.host: Bytes = np.zeros((pages + 1, page_bytes), np.uint8)
            self.pages = torch.from_numpy(self.host)
            self.memory = HostMemory(self.host.ctypes.data, self.host.nbytes)
        else:
            self.pages = torch.zeros((pages + 1, page_bytes), dtype=torch.uint8, device=device)
            torch.cuda.synchronize(device)
            self.memory = DeviceMemory(self.pages.data_ptr(), self.pages.numel(), device.index, self._read)

    def fill(self, value: int) -> None:
        self.pages.fill_(value)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def hashes(self, pages: list[int], parts: int = 1) -> list[list[str]]:
        """Of each of the equal `parts` of a page, the hashes over `pages`."""
        content = self.pages[torch.tensor(pages, device=self.device)].cpu().numpy()
        return [[xxhash.xxh3_128_hexdigest(page.data) for page in part] for part in np.split(content, parts, axis=1)]

    def _read(self, offset: int, nbytes: int) -> bytes:
        return self.pages.flatten()[offset : offset + nbytes].cpu().numpy().tobytes()


class Worker:
    """A handoff service with a rank over each of `pools`."""

    def __init__(self, name: str, backend: str, options: BackendOptions, layout: KVLayout, pools: list[Pool]) -> None:
        self.name = name
        self.registry: dict[str, PeerAddress] = {}
        self._woken = threading.Event()
        slices = [rank_slice(layout, len(pools), rank) for rank in range(len(pools))]
        self.incarnation = uuid.uuid4().hex
        blank = PeerDescriptor(
            version=PROTOCOL_VERSION,
            worker=name,
            incarnation=self.incarnation,
            weights="",
            engine="",
            layout=layout,
            tp_size=len(pools),
            pp_size=1,
            backend=backend,
            epoch=0,
            ranks=tuple(slices),
        )
        self.service = HandoffService(
            blank, lambda rank, command: self.ranks[rank].submit(command), self.registry.get, self._woken.set
        )
        factory = backend_factory(backend, options)
        executors = [
            RankExecutor(rank, slice_, pool.memory, factory, self.service.report, name=self.incarnation)
            for rank, (slice_, pool) in enumerate(zip(slices, pools, strict=True))
        ]
        prepare = partial(use_device, pools[0].device)
        self.ranks = [RankTransfer(executor, prepare) for executor in executors]
        self.service.start()
        self._tick = 0

    def events(self) -> Iterator[HandoffEvent]:
        """Events as they come, for ever."""
        while True:
            self._tick += 1
            self.service.beat(self._tick)
            yield from self.service.events()
            self._woken.wait(0.1)
            self._woken.clear()

    def close(self) -> None:
        self.service.close()
        for rank in self.ranks:
            rank.close()


# The receiving process


def receive(pipe: Connection, args: argparse.Namespace) -> None:
    """Obeys the sending process: takes part in one way of moving pages at a time."""
    shape = layout_of(args).rank_shape(args.receiver_tp)
    pools = [Pool(shape.page_bytes, args.pool_pages, device_of(args, 1)) for _ in range(args.receiver_tp)]
    for pool in pools:
        pool.fill(1)
    serve: dict[str, Callable[[Connection, argparse.Namespace, list[Pool], str], None]] = {
        "socket": receive_socket,
        "bare": receive_bare,
        "handoff": receive_handoff,
    }
    while True:
        order, backend = pipe.recv()
        if order == "quit":
            return
        if order == "check":
            pages = scattered(2, args.pool_pages, args.pages)
            pipe.send([found for pool in pools for found in pool.hashes(pages)])
            for pool in pools:
                pool.fill(1)
            continue
        serve[order](pipe, args, pools, backend)


def receive_socket(pipe: Connection, args: argparse.Namespace, pools: list[Pool], _: str) -> None:
    pages = scattered(2, args.pool_pages, args.pages)
    with socket.create_server((HOST, 0)) as server:
        pipe.send(server.getsockname()[1])
        connection, _ = server.accept()
        with connection:
            for page in pages:
                left = memoryview(pools[0].host[page])
                while left:
                    left = left[connection.recv_into(left) :]
            connection.sendall(b"!")


def receive_bare(pipe: Connection, args: argparse.Namespace, pools: list[Pool], backend: str) -> None:
    engine = backend_factory(backend, options_of(args))(uuid.uuid4().hex)
    engine.register(pools[0].memory.region)
    pipe.send((engine.endpoint(), pools[0].memory.region.address))
    pipe.recv()
    engine.close()


def receive_handoff(pipe: Connection, args: argparse.Namespace, pools: list[Pool], backend: str) -> None:
    worker = Worker("receiver", backend, options_of(args), layout_of(args), pools)
    pipe.send(None)
    worker.registry["sender"] = pipe.recv()
    pages = scattered(2, args.pool_pages, args.pages)
    for number in range(args.rounds + 1):
        worker.service.expect(str(number), 0, "sender")
    for event in worker.events():
        if isinstance(event, Begun):
            worker.service.announce(event.transfer_id, [PageSpan(0, 0, pages)], 0)
        elif isinstance(event, Arrived) and event.transfer_id == str(args.rounds):
            break
    pipe.send(None)
    pipe.recv()
    worker.close()


# The sending process


def options_of(args: argparse.Namespace) -> BackendOptions:
    return BackendOptions(host=HOST, protocol=args.protocol, cuda=args.device == "cuda")


def device_of(args: argparse.Namespace, index: int) -> torch.device:
    """Where the pools of process `index` are, which becomes its current device."""
    if args.device == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


class Sender:
    """Moves the pages in every way; each method yields the seconds of one round after the other."""

    def __init__(self, pipe: Connection, args: argparse.Namespace) -> None:
        self._pipe = pipe
        self._args = args
        layout = layout_of(args)
        self._layout = layout
        self._page_bytes = layout.rank_shape(1).page_bytes
        self._pool = Pool(self._page_bytes, args.pool_pages, device_of(args, 0))
        noise = np.random.default_rng(0).integers(0, 255, self._page_bytes, dtype=np.uint8)
        for page in range(1, args.pool_pages + 1):
            self._pool.pages[page] = torch.from_numpy(np.roll(noise, page))
        self._source = scattered(1, args.pool_pages, args.pages)
        self._target = scattered(2, args.pool_pages, args.pages)
        self.nbytes = args.pages * self._page_bytes

    def _check(self, what: str) -> None:
        self._pipe.send(("check", ""))
        # A page is its heads one after the other: each of the receiver's ranks has one contiguous part.
        if self._pipe.recv() != self._pool.hashes(self._source, self._args.receiver_tp):
            raise SystemExit(f"{what}: the pages did not arrive as they were sent")

    def copy(self) -> Iterator[float]:
        """Page by page within one process; on GPUs to a neighbour's memory."""
        device = self._pool.device
        other = Pool(
            self._page_bytes, self._args.pool_pages, device if device.type == "cpu" else torch.device("cuda:1")
        )
        other.fill(1)
        while True:
            began = time.perf_counter()
            for a, b in zip(self._source, self._target, strict=True):
                other.pages[b].copy_(self._pool.pages[a], non_blocking=True)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            yield time.perf_counter() - began

    def socket(self) -> Iterator[float]:
        while True:
            self._pipe.send(("socket", ""))
            with socket.create_connection((HOST, self._pipe.recv())) as connection:
                began = time.perf_counter()
                for page in self._source:
                    connection.sendall(memoryview(self._pool.host[page]))
                connection.recv(1)
                seconds = time.perf_counter() - began
            yield seconds

    def bare(self, backend: str) -> Iterator[float]:
        """The library alone, waiting as its users do: post everything, then ask until it is done."""
        engine = backend_factory(backend, options_of(self._args))(uuid.uuid4().hex)
        engine.register(self._pool.memory.region)
        self._pipe.send(("bare", backend))
        endpoint, address = self._pipe.recv()
        whole = Runs(*(np.array([value], dtype=np.int64) for value in (0, 0, self._page_bytes)))
        runs = over_pages(whole, self._page_bytes, self._source, self._page_bytes, self._target)
        runs = Runs(runs.src + self._pool.memory.region.address, runs.dst + address, runs.nbytes)
        peer = engine.connect(endpoint, address)
        while not engine.connected(peer):
            time.sleep(0.001)
        try:
            while True:
                began = time.perf_counter()
                write_all(engine, peer, runs)
                yield time.perf_counter() - began
        finally:
            engine.close()
            self._pipe.send(None)
            self._check(f"bare {backend}")

    def _compute(self) -> None:
        """Stands for the prefill step that ends with pages: on a GPU the host waits for it as the worker does."""
        if self._pool.device.type == "cpu":
            time.sleep(0.2)
        else:
            torch.cuda._sleep(_STEP_CYCLES)
            torch.cuda.synchronize(self._pool.device)

    def handoff(self, backend: str) -> Iterator[float]:
        worker = Worker("sender", backend, options_of(self._args), self._layout, [self._pool])
        self._pipe.send(("handoff", backend))
        self._pipe.recv()
        self._pipe.send(PeerAddress(worker.service.endpoint, worker.incarnation))
        events = worker.events()
        parts = [part.tolist() for part in np.array_split(self._source, self._args.chunks)]
        try:
            for number in range(self._args.rounds + 1):
                transfer = str(number)
                worker.service.open(transfer)
                worker.service.started(transfer, self._args.pages * self._layout.page_size)
                self._compute()  # the receiver announces its pages meanwhile
                began, first = time.perf_counter(), 0
                for part in parts:
                    worker.service.chunk_ready(transfer, [PageSpan(0, first, part)])
                    first += len(part)
                worker.service.finish(transfer, b"")
                next(event for event in events if isinstance(event, Delivered) and event.transfer_id == transfer)
                yield time.perf_counter() - began
        finally:
            self._pipe.recv()
            self._pipe.send(None)
            worker.close()
            self._check(f"handoff over {backend}")


def write_all(engine: TransferBackend, peer: str, runs: Runs) -> None:
    """Post and await the runs as fast as the library takes them."""
    for part in tickets(runs, engine.max_blocks, 1 << 40):
        ticket = engine.post(peer, part)
        while (outcome := engine.poll(ticket)) is Outcome.PENDING:
            time.sleep(0.0002)
        if outcome is not Outcome.DONE:
            raise SystemExit(f"a bare write ended as {outcome.value}")


def measure(ways: dict[str, Callable[[], Iterator[float]]], turns: int, rounds: int) -> dict[str, list[list[float]]]:
    """Seconds of every round, turn by turn, of every way; the first round of a turn warms up and does not count."""
    taken: dict[str, list[list[float]]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, begin in ways.items():
            with contextlib.closing(begin()) as way:  # type: ignore[type-var]
                taken[name].append([next(way) for _ in range(rounds + 1)][1:])
    return taken


def share_of_bare(name: str, taken: dict[str, list[list[float]]]) -> float | None:
    """Of a handoff: the median over turns of the bare write's least time over its own; None of any other way."""
    bare = taken.get(name.replace("handoff over", "bare"))
    if bare is None or not name.startswith("handoff"):
        return None
    return statistics.median(min(theirs) / min(own) for theirs, own in zip(bare, taken[name], strict=True))


def show(
    median: dict[str, float],
    best: dict[str, float],
    shares: dict[str, float | None],
    nbytes: int,
    args: argparse.Namespace,
) -> None:
    page = layout_of(args).rank_shape(1).page_bytes
    table = Table(title=f"{args.pages} scattered pages of {page / 2**20:.2f} MiB ({nbytes / 2**20:.0f} MiB)")
    table.add_column("way")
    table.add_column("GB/s, median", justify="right")
    table.add_column("best", justify="right")
    table.add_column("of the bare write beside it", justify="right")
    for name, rate in median.items():
        share = shares[name]
        table.add_row(name, f"{rate:.2f}", f"{best[name]:.2f}", "" if share is None else f"{share:.0%}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["mooncake", "nixl"], choices=["mooncake", "nixl"])
    parser.add_argument("--protocol", default="auto", help="what the backends are to use: tcp, rdma, cma, …")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where the pools are")
    parser.add_argument("--receiver-tp", type=int, default=1, help="ranks of the receiver")
    parser.add_argument("--pages", type=int, default=128, help="pages to move")
    parser.add_argument("--pool-pages", type=int, default=256, help="pages of either pool")
    parser.add_argument("--page-size", type=int, default=16, help="tokens per page")
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--chunks", type=int, default=4, help="prefill chunks of the handed-over request")
    parser.add_argument("--turns", type=int, default=5, help="times that every way has its turn")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of a turn")
    parser.add_argument("--output-json", type=Path)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=receive, args=(theirs, args), daemon=True)
    process.start()
    sender = Sender(ours, args)
    ways: dict[str, Callable[[], Iterator[float]]] = {"copy": sender.copy}
    if args.device == "cpu" and args.receiver_tp == 1:
        ways["plain socket"] = sender.socket
    for backend in args.backends:
        if args.receiver_tp == 1:
            ways[f"bare {backend}"] = partial(sender.bare, backend)
        ways[f"handoff over {backend}"] = partial(sender.handoff, backend)
    taken = measure(ways, args.turns, args.rounds)
    ours.send(("quit", ""))
    process.join()
    every = {name: [seconds for turn in turns for seconds in turn] for name, turns in taken.items()}
    median = {name: sender.nbytes / statistics.median(seconds) / 1e9 for name, seconds in every.items()}
    best = {name: sender.nbytes / min(seconds) / 1e9 for name, seconds in every.items()}
    shares = {name: share_of_bare(name, taken) for name in taken}
    show(median, best, shares, sender.nbytes, args)
    if args.output_json:
        report = {
            "bytes": sender.nbytes,
            "cores": os.cpu_count(),
            "median": median,
            "best": best,
            "shares": shares,
            "seconds": taken,
        }
        args.output_json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
