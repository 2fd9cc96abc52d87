"""The backends by themselves: each against the contract, and what is particular to one of them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from support.handoff_workers import Pool, content

from baton_serving.handoff.backends import mooncake
from baton_serving.handoff.backends.base import BackendError, DeviceMemory, HostMemory, Outcome, TransferBackend
from baton_serving.handoff.backends.devices import rdma_devices
from baton_serving.handoff.backends.fake import FakeFabric, Script
from baton_serving.handoff.backends.mooncake import MooncakeBackend
from baton_serving.handoff.backends.mooncake_writes import BatchWrites
from baton_serving.handoff.backends.registry import BackendOptions, backend_factory
from baton_serving.handoff.plan import Runs

PAGE = 1 << 14


def runs(source: Pool, target: Pool, pairs: list[tuple[int, int]], nbytes: int = PAGE) -> Runs:
    columns = (
        [source.memory.region.address + a * PAGE for a, _ in pairs],
        [target.memory.region.address + b * PAGE for _, b in pairs],
        [nbytes] * len(pairs),
    )
    return Runs(*(np.array(column, dtype=np.int64) for column in columns))


def finish(engine: TransferBackend | BatchWrites, ticket: int, timeout: float = 20.0) -> Outcome:
    deadline = time.monotonic() + timeout
    while (outcome := engine.poll(ticket)) is Outcome.PENDING:
        assert time.monotonic() < deadline, "the write never ended"
        time.sleep(0.0005)
    return outcome


def connect(engine: TransferBackend, other: TransferBackend, address: int) -> str:
    peer = engine.connect(other.endpoint(), address)
    assert engine.connect(other.endpoint(), address) == peer
    wait_connected(engine, peer)
    return peer


def wait_connected(engine: TransferBackend, peer: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not engine.connected(peer):
        assert time.monotonic() < deadline, "the handshake never ended"
        time.sleep(0.001)


class Bench:
    """Engines over two pools, closed at the end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.factory = backend_factory(name, BackendOptions(host="127.0.0.1"))
        self.source, self.target = Pool(PAGE, 1100), Pool(PAGE, 1100)
        self.source.pages[:] = content(0, *self.source.pages.shape)
        self._engines: list[TransferBackend] = []

    def engine(self, label: str, pool: Pool) -> TransferBackend:
        engine = self.factory(f"{label}-{time.monotonic_ns()}")
        engine.register(pool.memory.region)
        self._engines.append(engine)
        return engine

    def close(self, engine: TransferBackend) -> None:
        self._engines.remove(engine)
        engine.close()

    def close_all(self) -> None:
        for engine in list(self._engines):
            self.close(engine)


@pytest.fixture(params=["fake", "mooncake", "nixl"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    yield made
    made.close_all()


def test_a_write_is_done_when_every_block_is_there(bench: Bench) -> None:
    """Among them a first block that is small and quick: its end is not the end of the write."""
    writer, reader = bench.engine("a", bench.source), bench.engine("b", bench.target)
    peer = connect(writer, reader, bench.target.memory.region.address)
    for _ in range(3):
        bench.target.bytes[:] = 0
        count = min(writer.max_blocks, 1000)
        pairs = [(1 + n, 1000 - n) for n in range(count)]
        plan = runs(bench.source, bench.target, pairs)
        plan.nbytes[0] = 8
        assert finish(writer, writer.post(peer, plan)) is Outcome.DONE
        for a, b in pairs[1:]:
            assert (bench.target.pages[b] == bench.source.pages[a]).all()
        assert (bench.target.pages[1000][:8] == bench.source.pages[1][:8]).all()
        assert not bench.target.pages[1000][8:].any()


def test_two_engines_share_the_memory_and_one_may_close(bench: Bench) -> None:
    writer = bench.engine("a", bench.source)
    old, new = bench.engine("b1", bench.target), bench.engine("b2", bench.target)
    address = bench.target.memory.region.address
    to_old, to_new = connect(writer, old, address), connect(writer, new, address)
    plan = runs(bench.source, bench.target, [(1, 2)])
    assert finish(writer, writer.post(to_old, plan)) is Outcome.DONE
    bench.close(old)
    bench.target.bytes[:] = 0

    with contextlib.suppress(BackendError):  # refused before anything was sent: as good
        assert finish(writer, writer.post(to_old, plan)) is Outcome.BROKEN
    assert not bench.target.bytes.any()
    assert finish(writer, writer.post(to_new, plan)) is Outcome.DONE
    assert (bench.target.pages[2] == bench.source.pages[1]).all()


def test_an_unreachable_peer_is_an_error_not_a_hang(bench: Bench) -> None:
    writer, reader = bench.engine("a", bench.source), bench.engine("b", bench.target)
    endpoint = reader.endpoint()
    bench.close(reader)

    def attempt() -> Outcome:
        peer = writer.connect(endpoint, bench.target.memory.region.address)
        while not writer.connected(peer):
            time.sleep(0.001)
        return finish(writer, writer.post(peer, runs(bench.source, bench.target, [(1, 1)])))

    began = time.monotonic()
    with contextlib.suppress(BackendError):
        assert attempt() is Outcome.BROKEN
    assert time.monotonic() - began < 10
    assert not bench.target.bytes.any()


def test_a_handshake_ends_although_the_library_waits_only_after_the_first_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Left alone, it waits for a peer that says nothing for a minute, and so does every other write of the engine."""
    monkeypatch.setattr(mooncake, "_HANDSHAKE_TIMEOUT", 0.0)
    bench = Bench("mooncake")
    writer = bench.engine("a", bench.source)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        peer = writer.connect(f"127.0.0.1:{silent.getsockname()[1]}".encode(), 0)
        with pytest.raises(BackendError, match="cannot reach"):
            wait_connected(writer, peer)
    bench.close_all()


@pytest.fixture
def batches() -> Iterator[tuple[Bench, BatchWrites, TransferBackend, str]]:
    """Batches, as they go over NVLink, over this machine's tcp; their engine's peer."""
    bench = Bench("mooncake")
    writer, reader = bench.engine("a", bench.source), bench.engine("b", bench.target)
    assert isinstance(writer, MooncakeBackend)
    peer = connect(writer, reader, bench.target.memory.region.address)
    writes = BatchWrites(writer._engine, bench.source.memory.region, write_timeout=10.0)
    yield bench, writes, reader, peer
    writes.close()
    bench.close_all()


def test_batches_of_blocks_are_done_when_every_block_is_there(
    batches: tuple[Bench, BatchWrites, TransferBackend, str],
) -> None:
    bench, writes, _, peer = batches
    pairs = [(1 + n, 1000 - n) for n in range(900)]
    tickets = [writes.post(peer, runs(bench.source, bench.target, pairs[n : n + 300])) for n in range(0, 900, 300)]
    for ticket in tickets:
        assert finish(writes, ticket) is Outcome.DONE
    for a, b in pairs:
        assert (bench.target.pages[b] == bench.source.pages[a]).all()


def test_a_batch_to_an_engine_that_is_gone_is_broken(
    batches: tuple[Bench, BatchWrites, TransferBackend, str],
) -> None:
    bench, writes, reader, peer = batches
    bench.close(reader)
    assert finish(writes, writes.post(peer, runs(bench.source, bench.target, [(1, 1), (2, 2)]))) is Outcome.BROKEN
    assert not bench.target.pages[1:].any()


def test_what_is_in_use_is_told_and_a_slower_one_than_asked_for_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    factory = backend_factory("mooncake", BackendOptions(host="127.0.0.1", protocol="rdma"))
    engine = factory("a")
    transport = engine.transport()
    engine.close()
    assert transport.asked == "rdma"
    assert transport.degraded == (not rdma_devices())
    assert engine.fenced_by_close


def test_nixl_tells_whether_closing_keeps_writers_out() -> None:
    """UCX reads its environment once per process, so each choice needs a process of its own."""
    script = (
        "import sys; from baton_serving.handoff.backends.registry import *\n"
        "engine = backend_factory('nixl', BackendOptions(protocol=sys.argv[1]))('a')\n"
        "print(engine.transport().used, engine.fenced_by_close); engine.close()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for variable in ("UCX_TLS", "UCX_NET_DEVICES"):
        environment.pop(variable, None)
    said = {}
    for protocol in ("tcp", "cma"):
        done = subprocess.run(
            [sys.executable, "-c", script, protocol],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said[protocol] = done.stdout.split()
    assert said == {"tcp": ["tcp", "True"], "cma": ["cma", "False"]}


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match="unknown transfer backend 'carrier-pigeon': choose one of mooncake"):
        backend_factory("carrier-pigeon", BackendOptions())


def test_rdma_devices_are_those_with_a_port_that_is_up(tmp_path: Path) -> None:
    for device, state in (("mlx5_1", "4: ACTIVE"), ("mlx5_0", "4: ACTIVE"), ("mlx5_2", "1: DOWN")):
        port = tmp_path / device / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(state + "\n")
    assert rdma_devices(tmp_path) == ["mlx5_0", "mlx5_1"]
    assert rdma_devices(tmp_path / "none") == []


def test_host_memory_reads_inside_the_pool_only() -> None:
    pool = Pool(16, 4)
    pool.pages[2] = 7
    assert pool.memory.read(32, 16) == bytes([7] * 16)
    for offset, nbytes in ((-1, 4), (60, 5)):
        with pytest.raises(ValueError, match="outside the pool"):
            pool.memory.read(offset, nbytes)


def test_device_memory_reads_through_the_given_copy() -> None:
    source = ctypes.create_string_buffer(b"0123456789", 10)
    memory = DeviceMemory(ctypes.addressof(source), 10, 1, lambda offset, nbytes: source.raw[offset : offset + nbytes])
    assert memory.read(3, 4) == b"3456"
    assert memory.region.cuda


class TestFaultsToOrder:
    """The fake transport does what its script says."""

    def run(
        self, script: Callable[[int], Script], then: Callable[[FakeFabric, TransferBackend], None] | None = None
    ) -> tuple[list[Outcome], npt.NDArray[np.uint8], list[int]]:
        """Outcomes and bytes that landed at each half second after posting a write of three one-byte blocks."""
        now = [0.0]
        fabric = FakeFabric(clock=lambda: now[0], director=lambda source, target, blocks: script(blocks))
        source, target = (np.zeros(8, np.uint8) for _ in range(2))
        source[:] = range(1, 9)
        engines = [fabric.backend(name) for name in ("a", "b")]
        for engine, memory in zip(engines, (source, target), strict=True):
            engine.register(HostMemory(memory.ctypes.data, 8).region)
        base = np.arange(3, dtype=np.int64)
        ticket = engines[0].post("b", Runs(base + source.ctypes.data, base + target.ctypes.data, np.ones(3, np.int64)))
        outcomes: list[Outcome] = []
        landed: list[int] = []
        for _ in range(4):
            now[0] += 0.5
            fabric.pump()
            if not outcomes or outcomes[-1] is Outcome.PENDING:
                outcomes.append(engines[0].poll(ticket))
            landed.append(int(np.count_nonzero(target)))
            source[:3] = 100 + len(landed)
            if then is not None and len(landed) == 1:
                then(fabric, engines[1])
        return outcomes, target, landed

    def test_delay_reads_the_source_late(self) -> None:
        outcomes, target, landed = self.run(lambda blocks: Script([[0.1], [0.7], [1.2]]))
        assert outcomes == [Outcome.PENDING, Outcome.PENDING, Outcome.DONE]
        assert landed == [1, 2, 3, 3]
        assert target[:3].tolist() == [1, 101, 102]

    def test_a_dropped_block_hangs_the_write(self) -> None:
        outcomes, _, landed = self.run(lambda blocks: Script([[0.1], [], [0.1]]))
        assert set(outcomes) == {Outcome.PENDING}
        assert landed[-1] == 2

    def test_a_failed_write_lands_later_what_it_had_sent(self) -> None:
        outcomes, target, _ = self.run(lambda blocks: Script([[0.1], [1.4], []], Outcome.BROKEN, ends=0.4))
        assert outcomes == [Outcome.BROKEN]
        assert target[:3].tolist() == [1, 2, 0], "the source was not read after the failure"

    def test_a_closed_target_breaks_the_write_and_keeps_the_rest_out(self) -> None:
        outcomes, _, landed = self.run(lambda blocks: Script([[0.1], [1.0], [1.0]]), lambda _, target: target.close())
        assert outcomes == [Outcome.PENDING, Outcome.BROKEN]
        assert landed == [1, 1, 1, 1]

    def test_nothing_moves_while_an_engine_is_frozen(self) -> None:
        outcomes, _, landed = self.run(
            lambda blocks: Script([[0.1], [0.7], [0.7]]), lambda fabric, target: fabric.freeze("b")
        )
        assert set(outcomes) == {Outcome.PENDING}
        assert landed == [1, 1, 1, 1]

    def test_a_refused_write_sends_nothing(self) -> None:
        with pytest.raises(BackendError, match="cannot be reached"):
            self.run(lambda blocks: Script([[]] * blocks, Outcome.NOTHING_SENT))
