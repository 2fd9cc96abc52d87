"""What one rank does in a handoff: it owns transfer engines over its pool and carries out rank 0's commands.

Commands and reports are plain messages, so a follower's travel over the worker's own channels. A rank acts on commands
alone; the only clock it reads is the deadline of a write that it posted. `RankExecutor` is synchronous; `RankTransfer`
runs it on a thread.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from baton_serving.handoff.backends.base import (
    BackendError,
    BackendFactory,
    Outcome,
    PoolMemory,
    TransferBackend,
    Transport,
)
from baton_serving.handoff.digests import received_digests, sent_digests
from baton_serving.handoff.layout import PeerDescriptor, RankDescriptor
from baton_serving.handoff.plan import CopyPlanner, Runs, join_runs
from baton_serving.handoff.protocol import Key, PageDigest

logger = logging.getLogger(__name__)

_IDLE_POLL = 0.02  # seconds between looks at a write that is stuck
_BUSY_POLL = 0.0005
_TICKETS_PER_PEER = 2


class PageCopy(msgspec.Struct, frozen=True, array_like=True):
    """Pages of one group to copy: `source[i]` → `target[i]`, being page `indices[i]` of the request."""

    group: int
    indices: list[int]
    source: list[int]
    target: list[int]


class OpenEpoch(msgspec.Struct, frozen=True, tag=True):
    """Open a new engine over the same pool and use it for every write from now on. Answered by `EpochOpened`."""

    epoch: int


class CloseEpochs(msgspec.Struct, frozen=True, tag=True):
    """Tear down all engines up to `epoch`. Writes under way in them end; then `EpochsClosed`."""

    epoch: int


class Introduce(msgspec.Struct, frozen=True, tag=True):
    """This rank's worker and a peer behind `link`, as they describe themselves now."""

    link: int
    mine: PeerDescriptor
    theirs: PeerDescriptor


class Part(msgspec.Struct, frozen=True, tag=True):
    """The link is over."""

    link: int


class PostWrites(msgspec.Struct, frozen=True, tag=True):
    """Write what this rank owes of `copies` to every rank behind `link`. Answered by `Wrote`."""

    link: int
    key: Key
    batch: int
    copies: list[PageCopy]
    verify: bool = False


class CancelWrites(msgspec.Struct, frozen=True, tag=True):
    """Post nothing more of this transfer. What is under way is let finish: that is how a writer becomes quiet."""

    key: Key


class DigestPages(msgspec.Struct, frozen=True, tag=True):
    """Hash what the peer behind `link` wrote into these target pages. Answered by `Digested`."""

    link: int
    key: Key
    copies: list[PageCopy]


RankCommand = OpenEpoch | CloseEpochs | Introduce | Part | PostWrites | CancelWrites | DigestPages


class EpochOpened(msgspec.Struct, frozen=True, tag=True):
    rank: int
    epoch: int
    descriptor: RankDescriptor
    transport: Transport
    fenced_by_close: bool


class EpochFailed(msgspec.Struct, frozen=True, tag=True):
    rank: int
    epoch: int
    reason: str


class EpochsClosed(msgspec.Struct, frozen=True, tag=True):
    rank: int
    epoch: int


class Wrote(msgspec.Struct, frozen=True, tag=True):
    """A batch of this rank ended, or (`HUNG`) is past its deadline and will be reported again when it ends."""

    rank: int
    key: Key
    batch: int
    outcome: Outcome
    nbytes: int = 0
    seconds: float = 0.0
    digests: list[PageDigest] = []
    reason: str = ""


class Digested(msgspec.Struct, frozen=True, tag=True):
    rank: int
    key: Key
    digests: list[PageDigest]


class RankFailed(msgspec.Struct, frozen=True, tag=True):
    """The rank's transfer thread died of a fault of ours; nothing it had under way will be reported."""

    rank: int
    reason: str


RankReport = EpochOpened | EpochFailed | EpochsClosed | Wrote | Digested | RankFailed


@dataclass
class _Batch:
    """One `PostWrites` under way: slices not yet posted or not yet ended."""

    key: Key
    number: int
    deadline: float
    begun: float
    nbytes: int
    left: int = 0
    outcome: Outcome = Outcome.DONE
    reason: str = ""
    late: bool = False
    digests: list[PageDigest] = field(default_factory=list)

    def spoil(self, outcome: Outcome, reason: str) -> None:
        """The worst end of any slice is the end of the batch."""
        if self.outcome is not Outcome.BROKEN:
            self.outcome, self.reason = outcome, self.reason or reason


@dataclass
class _Lane:
    """Writes to one peer engine, in order: what waits and what is under way (ticket, batch)."""

    peer: str
    ready: bool = False
    waiting: deque[tuple[Runs, _Batch]] = field(default_factory=deque)
    posted: list[tuple[int, _Batch]] = field(default_factory=list)


class _Engine:
    """One epoch: a backend and its lanes."""

    def __init__(self, backend: TransferBackend) -> None:
        self.backend = backend
        self.lanes: dict[str, _Lane] = {}

    @property
    def busy(self) -> bool:
        return any(lane.posted or lane.waiting for lane in self.lanes.values())


class RankExecutor:
    """Carries out commands and polls writes; `report` takes what comes of them. One thread calls it."""

    def __init__(
        self,
        rank: int,
        slice_: RankDescriptor,
        memory: PoolMemory,
        factory: BackendFactory,
        report: Callable[[RankReport], None],
        clock: Callable[[], float] = time.monotonic,
        write_timeout: float = 10.0,
        name: str = "engine",
    ) -> None:
        self.rank = rank
        self._slice = slice_
        self._memory = memory
        self._factory = factory
        self.report = report
        self._clock = clock
        self._write_timeout = write_timeout
        self._name = name
        self._engines: dict[int, _Engine] = {}
        self._links: dict[int, Introduce] = {}
        self._planners: dict[int, CopyPlanner] = {}

    @property
    def busy(self) -> bool:
        return any(engine.busy for engine in self._engines.values())

    def execute(self, command: RankCommand) -> None:
        match command:
            case OpenEpoch(epoch=epoch):
                self._open(epoch)
            case CloseEpochs(epoch=epoch):
                self._close(epoch)
            case Introduce(link=link):
                self._links[link] = command
                self._planners[link] = CopyPlanner(command.mine, self.rank, command.theirs)
                self._reach(link)
            case Part(link=link):
                self._links.pop(link, None)
                self._planners.pop(link, None)
            case PostWrites():
                self._post(command)
            case CancelWrites(key=key):
                self._cancel(key)
            case DigestPages():
                self._digest(command)

    def _open(self, epoch: int) -> None:
        try:
            backend = self._factory(f"{self._name}-r{self.rank}-e{epoch}")
            backend.register(self._memory.region)
        except BackendError as error:
            self.report(EpochFailed(self.rank, epoch, str(error)))
            return
        self._engines[epoch] = _Engine(backend)
        for link in self._links:
            self._reach(link)
        descriptor = msgspec.structs.replace(
            self._slice,
            pages=self._memory.region.nbytes // self._slice.shape.page_bytes,
            address=self._memory.region.address,
            endpoint=backend.endpoint(),
        )
        self.report(EpochOpened(self.rank, epoch, descriptor, backend.transport(), backend.fenced_by_close))

    def _reach(self, link: int) -> None:
        """Begin to connect the newest engine to the ranks that this one will write to, while the peer is alive."""
        if not self._engines:
            return
        backend = self._engines[max(self._engines)].backend
        theirs = self._links[link].theirs
        for target in self._planners[link].targets():
            try:
                backend.connect(theirs.ranks[target].endpoint, theirs.ranks[target].address)
            except BackendError as error:
                logger.warning("rank %d cannot connect to %s: %s", self.rank, theirs.label, error)

    def _close(self, epoch: int) -> None:
        for number in [number for number in self._engines if number <= epoch]:
            engine = self._engines.pop(number)
            engine.backend.close()
            for lane in engine.lanes.values():
                for _, batch in lane.posted:
                    self._slice_ended(batch, Outcome.BROKEN, "the engine was closed")
                for _, batch in lane.waiting:
                    self._slice_ended(batch, Outcome.NOTHING_SENT, "the engine was closed")
        self.report(EpochsClosed(self.rank, epoch))

    def _post(self, command: PostWrites) -> None:
        now = self._clock()
        link = self._links.get(command.link)
        batch = _Batch(command.key, command.batch, deadline=now + self._write_timeout, begun=now, nbytes=0)
        if link is None:
            batch.spoil(Outcome.NOTHING_SENT, "the link is gone")
            self._finish(batch)
            return
        planner = self._planners[command.link]
        engine = self._engines[max(self._engines)]
        batch.left = 1  # held until every slice is queued
        for target in planner.targets():
            parts = [planner.runs(target, copy.group, copy.source, copy.target) for copy in command.copies]
            runs = join_runs(parts)
            if not len(runs):
                continue
            rank = link.theirs.ranks[target]
            if int((runs.dst + runs.nbytes).max()) > rank.pages * rank.shape.page_bytes:
                batch.spoil(Outcome.NOTHING_SENT, f"a page lies outside the pool of rank {target}")
                continue
            absolute = Runs(runs.src + self._memory.region.address, runs.dst + rank.address, runs.nbytes)
            self._enqueue(engine, rank, absolute, batch)
        if command.verify:
            batch.digests = sent_digests(self._memory, self.rank, planner, self._slice, command.copies)
        self._slice_ended(batch, Outcome.DONE, "")
        self._pump(engine)

    def _enqueue(self, engine: _Engine, rank: RankDescriptor, runs: Runs, batch: _Batch) -> None:
        try:
            peer = engine.backend.connect(rank.endpoint, rank.address)
        except BackendError as error:
            batch.spoil(Outcome.NOTHING_SENT, str(error))
            return
        lane = engine.lanes.setdefault(peer, _Lane(peer))
        size = engine.backend.max_blocks
        for first in range(0, len(runs), size):
            lane.waiting.append((runs[first : first + size], batch))
            batch.left += 1
        batch.nbytes += runs.total

    def _cancel(self, key: Key) -> None:
        self._drop_waiting(lambda batch: batch.key == key, "the transfer was cancelled")

    def _digest(self, command: DigestPages) -> None:
        link = self._links.get(command.link)
        digests = [] if link is None else received_digests(self._memory, self.rank, link, command.copies)
        self.report(Digested(self.rank, command.key, digests))

    def poll(self) -> bool:
        """Look at every write once. Returns whether anything ended."""
        moved = False
        for engine in list(self._engines.values()):
            for lane in engine.lanes.values():
                moved |= self._poll_lane(engine, lane)
            self._pump(engine)
        self._watch_deadlines()
        return moved

    def _poll_lane(self, engine: _Engine, lane: _Lane) -> bool:
        still = []
        for ticket, batch in lane.posted:
            outcome = engine.backend.poll(ticket)
            if outcome is Outcome.PENDING:
                still.append((ticket, batch))
            else:
                self._slice_ended(batch, outcome, "a write failed")
        moved = len(still) != len(lane.posted)
        lane.posted = still
        return moved

    def _pump(self, engine: _Engine) -> None:
        """Post what waits. A batch that is spoiled posts no more."""
        for lane in engine.lanes.values():
            if lane.waiting and not self._is_ready(engine, lane):
                continue
            while lane.waiting and len(lane.posted) < _TICKETS_PER_PEER:
                runs, batch = lane.waiting.popleft()
                if batch.outcome is not Outcome.DONE:
                    self._slice_ended(batch, Outcome.NOTHING_SENT, batch.reason)
                    continue
                try:
                    lane.posted.append((engine.backend.post(lane.peer, runs), batch))
                except BackendError as error:
                    self._slice_ended(batch, Outcome.NOTHING_SENT, str(error))

    def _is_ready(self, engine: _Engine, lane: _Lane) -> bool:
        """Whether the lane's peer is connected; what waits for one that cannot be is failed."""
        if not lane.ready:
            try:
                lane.ready = engine.backend.connected(lane.peer)
            except BackendError as error:
                waiting, lane.waiting = lane.waiting, deque()
                for _, batch in waiting:
                    self._slice_ended(batch, Outcome.NOTHING_SENT, str(error))
        return lane.ready

    def _watch_deadlines(self) -> None:
        """Give up on batches past their deadline: nothing more of them is posted, what is under way is awaited."""
        now = self._clock()
        late = f"a write took longer than {self._write_timeout:g} s"
        for engine in self._engines.values():
            for lane in engine.lanes.values():
                for batch in [batch for _, batch in lane.posted]:
                    if now >= batch.deadline and not batch.late:
                        batch.late = True
                        self.report(Wrote(self.rank, batch.key, batch.number, Outcome.HUNG, reason=late))
        self._drop_waiting(lambda batch: now >= batch.deadline, late)

    def _drop_waiting(self, drop: Callable[[_Batch], bool], reason: str) -> None:
        """Fail the slices, not yet posted, of these batches."""
        for engine in self._engines.values():
            for lane in engine.lanes.values():
                dropped = [batch for _, batch in lane.waiting if drop(batch)]
                lane.waiting = deque(entry for entry in lane.waiting if not drop(entry[1]))
                for batch in dropped:
                    self._slice_ended(batch, Outcome.NOTHING_SENT, reason)

    def _slice_ended(self, batch: _Batch, outcome: Outcome, reason: str) -> None:
        batch.left -= 1
        if outcome is not Outcome.DONE:
            batch.spoil(outcome, reason)
        if batch.left == 0:
            self._finish(batch)

    def _finish(self, batch: _Batch) -> None:
        seconds = self._clock() - batch.begun
        self.report(
            Wrote(
                self.rank,
                batch.key,
                batch.number,
                batch.outcome,
                batch.nbytes,
                seconds,
                batch.digests,
                batch.reason,
            )
        )

    def close(self) -> None:
        for engine in self._engines.values():
            engine.backend.close()
        self._engines.clear()


class RankTransfer:
    """A `RankExecutor` on a thread of its own. `submit` may be called from any thread and never blocks."""

    def __init__(self, executor: RankExecutor) -> None:
        self._executor = executor
        self._commands: queue.SimpleQueue[RankCommand | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="handoff-rank", daemon=True)
        self._thread.start()

    def submit(self, command: RankCommand) -> None:
        self._commands.put(command)

    def close(self) -> None:
        """Stop the thread and tear every engine down."""
        self._commands.put(None)
        self._thread.join()
        self._executor.close()

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:  # the border of a thread: a fault here must end the worker, not hide in a log
            logger.exception("rank %d: transfers failed", self._executor.rank)
            self._executor.report(RankFailed(self._executor.rank, str(error)))

    def _serve(self) -> None:
        pause = _BUSY_POLL
        while True:
            try:
                command = self._commands.get(timeout=pause) if self._executor.busy else self._commands.get()
            except queue.Empty:
                pause = _BUSY_POLL if self._executor.poll() else min(pause * 1.2, _IDLE_POLL)
                continue
            if command is None:
                return
            self._executor.execute(command)
            self._executor.poll()
            pause = _BUSY_POLL
