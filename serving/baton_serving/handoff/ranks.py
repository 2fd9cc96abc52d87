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
from collections.abc import Callable

import msgspec

from baton_serving.handoff.backends.base import (
    BackendError,
    BackendFactory,
    Outcome,
    PoolMemory,
    Transport,
)
from baton_serving.handoff.digests import received_digests, sent_digests
from baton_serving.handoff.layout import PeerDescriptor, RankDescriptor
from baton_serving.handoff.plan import CopyPlanner, Runs, join_runs
from baton_serving.handoff.protocol import Key, PageDigest
from baton_serving.handoff.writes import Batch, WriteEngine

logger = logging.getLogger(__name__)

_BUSY_POLL = 0.0001  # seconds between looks at writes that were just posted
_SLOWER = 1.02  # from look to look: an end is seen late by at most 2% of the time it took
_IDLE_POLL = 0.02


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
        self._engines: dict[int, WriteEngine] = {}
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
                self._forget()
            case Part(link=link):
                self._links.pop(link, None)
                self._planners.pop(link, None)
                self._forget()
            case PostWrites():
                self._post(command)
            case CancelWrites(key=key):
                for engine in self._engines.values():
                    engine.drop(lambda batch: batch.key == key, "the transfer was cancelled")
            case DigestPages():
                self._digest(command)

    def poll(self) -> bool:
        """Look at every write once and post what waits. Returns whether anything ended."""
        moved = [engine.poll() for engine in list(self._engines.values())]
        return any(moved)

    def close(self) -> None:
        """Tear every engine down."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    @property
    def _newest(self) -> WriteEngine:
        return self._engines[max(self._engines)]

    def _open(self, epoch: int) -> None:
        try:
            backend = self._factory(f"{self._name}-r{self.rank}-e{epoch}")
            backend.register(self._memory.region)
        except BackendError as error:
            self.report(EpochFailed(self.rank, epoch, str(error)))
            return
        self._engines[epoch] = WriteEngine(backend, self._clock, self._write_timeout, self._ended, self._late)
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
        theirs = self._links[link].theirs
        for target in self._planners[link].targets():
            rank = theirs.ranks[target]
            try:
                self._newest.reach(rank.endpoint, rank.address)
            except BackendError as error:
                logger.warning("rank %d cannot connect to %s: %s", self.rank, theirs.label, error)

    def _forget(self) -> None:
        """Let go of engines that no peer describes any more."""
        described = {rank.endpoint for link in self._links.values() for rank in link.theirs.ranks}
        for engine in self._engines.values():
            engine.forget(described)

    def _close(self, epoch: int) -> None:
        for number in [number for number in self._engines if number <= epoch]:
            self._engines.pop(number).close()
        self.report(EpochsClosed(self.rank, epoch))

    def _post(self, command: PostWrites) -> None:
        batch = Batch(command.key, command.batch, begun=self._clock(), left=1)  # 1: held until every ticket is queued
        link = self._links.get(command.link)
        engine = self._newest
        if link is None:
            engine.end(batch, Outcome.NOTHING_SENT, "the link is gone")
            return
        planner = self._planners[command.link]
        for target in planner.targets():
            parts = [planner.runs(target, copy.group, copy.source, copy.target) for copy in command.copies]
            runs = join_runs(parts)
            if not len(runs):
                continue
            rank = link.theirs.ranks[target]
            if int((runs.src + runs.nbytes).max()) > self._memory.region.nbytes:
                raise ValueError(f"a page to send lies outside the pool of rank {self.rank}")
            if int((runs.dst + runs.nbytes).max()) > rank.pages * rank.shape.page_bytes:
                batch.spoil(Outcome.NOTHING_SENT, f"a page lies outside the pool of rank {target}")
                continue
            absolute = Runs(runs.src + self._memory.region.address, runs.dst + rank.address, runs.nbytes)
            engine.add(rank.endpoint, rank.address, absolute, batch)
        if command.verify:
            batch.digests = sent_digests(self._memory, self.rank, planner, self._slice, command.copies)
        engine.end(batch, Outcome.DONE, "")
        engine.pump()

    def _digest(self, command: DigestPages) -> None:
        link = self._links.get(command.link)
        digests = [] if link is None else received_digests(self._memory, self.rank, link, command.copies)
        self.report(Digested(self.rank, command.key, digests))

    def _ended(self, batch: Batch) -> None:
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

    def _late(self, batch: Batch) -> None:
        self.report(Wrote(self.rank, batch.key, batch.number, Outcome.HUNG, reason=batch.reason))


class RankTransfer:
    """A `RankExecutor` on a thread of its own. `submit` may be called from any thread and never blocks.

    `prepare` is called on that thread before anything else.
    """

    def __init__(self, executor: RankExecutor, prepare: Callable[[], None] = lambda: None) -> None:
        self._executor = executor
        self._prepare = prepare
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
            self._prepare()
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
                pause = _BUSY_POLL if self._executor.poll() else min(pause * _SLOWER, _IDLE_POLL)
                continue
            if command is None:
                return
            self._executor.execute(command)
            self._executor.poll()
            pause = _BUSY_POLL
