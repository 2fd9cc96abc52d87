"""A transport inside one process, with faults to order. Bytes really move, block by block, at times that a script sets.

It behaves as badly as the real ones: a block reads its source when it lands, so a source that was reused too early
sends the new content; a write may be reported as failed while its blocks are still under way; a dead or closed writer's
last bytes may still land. One thing alone keeps a block out: the target engine is closed.

Time is the fabric's clock: real for a service, virtual and seeded under property tests.
"""

from __future__ import annotations

import ctypes
import heapq
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from baton_serving.handoff.backends.base import BackendError, MemoryRegion, Outcome, Transport
from baton_serving.handoff.plan import Runs


@dataclass(frozen=True)
class Script:
    """How one posted write goes. `delays[i]` are the times after posting at which block i lands: none (dropped), one,
    or several (duplicated). `outcome` is reported `ends` seconds after posting, or when the last block has landed if
    that is None; `PENDING` is never reported (a hang)."""

    delays: list[list[float]]
    outcome: Outcome = Outcome.DONE
    ends: float | None = None


Director = Callable[[str, str, int], Script]  # (source engine, target engine, blocks) -> how the write goes


def smoothly(source: str, target: str, blocks: int) -> Script:
    """No faults: every block lands at once."""
    return Script([[0.0]] * blocks)


@dataclass
class _Write:
    source: FakeBackend
    target: str
    outcome: Outcome
    waits: bool  # ends with its last landing
    left: int = 0
    lost: bool = False
    state: Outcome = Outcome.PENDING
    blocks: list[_Block] = field(default_factory=list)


@dataclass
class _Block:
    write: _Write
    src: int
    dst: int
    nbytes: int
    kept: bytes | None = None  # content when the source engine was closed before the block landed


class FakeFabric:
    """Everything between fake engines. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, director: Director = smoothly) -> None:
        self.clock = clock
        self.director = director
        self.landed = 0
        self._engines: dict[str, FakeBackend] = {}
        self._frozen: set[str] = set()
        self._held: list[Callable[[], None]] = []
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._lock = threading.RLock()

    def backend(self, name: str) -> FakeBackend:
        """A factory for one process's engines."""
        return FakeBackend(self, name)

    def freeze(self, name: str) -> None:
        """Stop the engine: nothing leaves it, lands in it or ends until `thaw`."""
        with self._lock:
            self._frozen.add(name)

    def thaw(self, name: str) -> None:
        with self._lock:
            self._frozen.discard(name)
            held, self._held = self._held, []
            for action in held:
                self._at(self.clock(), action)

    def pump(self) -> None:
        """Let everything happen that is due."""
        with self._lock:
            while self._due and self._due[0][0] <= self.clock():
                heapq.heappop(self._due)[2]()

    def next_due(self) -> float | None:
        """When the next thing happens, on the fabric's clock."""
        with self._lock:
            return self._due[0][0] if self._due else None

    def join(self, engine: FakeBackend) -> None:
        with self._lock:
            if engine.name in self._engines:
                raise BackendError(f"an engine named {engine.name} exists already")
            self._engines[engine.name] = engine

    def leave(self, engine: FakeBackend) -> None:
        """The engine is closed or its process died: what it had under way is on its own now. An engine that closing
        does not fence writes by its own hands, so nothing of it lands later."""
        with self._lock:
            self._engines.pop(engine.name, None)
            for write in engine.writes.values():
                _keep(write)
                write.lost = not engine.fenced_by_close
            for other in self._engines.values():
                for write in other.writes.values():
                    if write.target == engine.name:
                        self._break(write)

    def post(self, source: FakeBackend, target: str, runs: Runs) -> _Write:
        with self._lock:
            script = self.director(source.name, target, len(runs))
            if script.outcome is Outcome.NOTHING_SENT or target not in self._engines:
                raise BackendError(f"engine {target} cannot be reached")
            now = self.clock()
            write = _Write(source, target, script.outcome, waits=script.ends is None)
            for row, delays in enumerate(script.delays):
                block = _Block(write, int(runs.src[row]), int(runs.dst[row]), int(runs.nbytes[row]))
                write.left += max(1, len(delays))  # a dropped block is waited for in vain
                for delay in delays:
                    write.blocks.append(block)
                    self._at(now + delay, partial(self._land, block))
            if script.ends is not None:
                self._at(now + script.ends, partial(self._end, write))
            elif not write.left:
                write.state = write.outcome
        self.pump()
        return write

    def moving(self, source: str, src: int | None, target: str, dst: int) -> None:
        """Called before a block lands; `src` is None when its bytes left the source before. For tests to watch."""

    def _at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when, next(self._order), action))

    def _stopped(self, write: _Write) -> bool:
        return write.target in self._frozen or (
            write.source.name in self._frozen and write.source.name in self._engines
        )

    def _land(self, block: _Block) -> None:
        write = block.write
        if self._stopped(write):
            self._held.append(partial(self._land, block))
            return
        write.blocks.remove(block)
        write.left -= 1
        target = self._engines.get(write.target)
        if target is None or write.lost:
            self._break(write)
            return
        self.moving(write.source.name, block.src if block.kept is None else None, write.target, block.dst)
        target.admit(block.dst, block.nbytes)
        if block.kept is None:
            ctypes.memmove(block.dst, block.src, block.nbytes)
        else:
            ctypes.memmove(block.dst, block.kept, block.nbytes)
        self.landed += 1
        if write.waits and not write.left:
            self._end(write)

    def _end(self, write: _Write) -> None:
        if self._stopped(write):
            self._held.append(partial(self._end, write))
        elif write.state is Outcome.PENDING:
            write.state = write.outcome
            if write.state is Outcome.BROKEN:
                _keep(write)

    def _break(self, write: _Write) -> None:
        """The connection ended under the write."""
        if self._stopped(write):
            self._held.append(partial(self._break, write))
        elif write.state is Outcome.PENDING:
            write.state = Outcome.BROKEN
            _keep(write)


def _keep(write: _Write) -> None:
    """From now on the source is not read any more: what is under way has left it."""
    for block in write.blocks:
        if block.kept is None:
            block.kept = ctypes.string_at(block.src, block.nbytes)


class FakeBackend:
    """One engine on a fabric. See `TransferBackend`."""

    max_blocks = 64
    max_bytes = 1 << 20
    max_posts = 2
    fenced_by_close = True

    def __init__(self, fabric: FakeFabric, name: str) -> None:
        self.name = name
        self.writes: dict[int, _Write] = {}
        self._fabric = fabric
        self._region: MemoryRegion | None = None
        self._tickets = itertools.count(1)
        fabric.join(self)

    def register(self, region: MemoryRegion) -> None:
        self._region = region

    def endpoint(self) -> bytes:
        return self.name.encode()

    def transport(self) -> Transport:
        return Transport(asked="fake", used="fake")

    def connect(self, endpoint: bytes, address: int) -> str:
        return endpoint.decode()

    def connected(self, peer: str) -> bool:
        return True

    def disconnect(self, peer: str) -> None:
        """Nothing is held per peer."""

    def post(self, peer: str, runs: Runs) -> int:
        ticket = next(self._tickets)
        self.writes[ticket] = self._fabric.post(self, peer, runs)
        return ticket

    def poll(self, ticket: int) -> Outcome:
        self._fabric.pump()
        state = self.writes[ticket].state
        if state is not Outcome.PENDING:
            del self.writes[ticket]
        return state

    def close(self) -> None:
        self._fabric.leave(self)

    def admit(self, address: int, nbytes: int) -> None:
        """Raises ValueError for a write outside the registered region: a planner at fault, not a peer."""
        region = self._region
        if region is None or address < region.address or address + nbytes > region.address + region.nbytes:
            raise ValueError(f"a write of {nbytes} bytes at {address:#x} misses the registered region")
