"""Writes under way on one transfer engine: a lane per peer engine, cut into tickets, posted in order and polled.

A batch is what one command asked for; it may spread over several lanes and ends with its last ticket. Deadlines run
from the posting of a ticket: waiting in the lane is not the peer's fault.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from baton_serving.handoff.backends.base import BackendError, Outcome, TransferBackend
from baton_serving.handoff.plan import Runs, tickets
from baton_serving.handoff.protocol import Key, PageDigest


@dataclass
class Batch:
    """`left` counts tickets not yet ended; `late`: reported as hung already."""

    key: Key
    number: int
    begun: float
    nbytes: int = 0
    left: int = 0
    outcome: Outcome = Outcome.DONE
    reason: str = ""
    late: bool = False
    digests: list[PageDigest] = field(default_factory=list)

    def spoil(self, outcome: Outcome, reason: str) -> None:
        """The worst end of any ticket is the end of the batch."""
        if self.outcome is not Outcome.BROKEN:
            self.outcome, self.reason = outcome, self.reason or reason


@dataclass
class Posted:
    ticket: int
    batch: Batch
    deadline: float


@dataclass
class Lane:
    """Writes to one peer engine: what waits and what is under way."""

    peer: str
    endpoint: bytes
    ready: bool = False
    waiting: deque[tuple[Runs, Batch]] = field(default_factory=deque)
    posted: list[Posted] = field(default_factory=list)

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.posted)


class WriteEngine:
    """One epoch's engine and its lanes. `ended` is called for every batch once, `late` at most once before."""

    def __init__(
        self,
        backend: TransferBackend,
        clock: Callable[[], float],
        timeout: float,
        ended: Callable[[Batch], None],
        late: Callable[[Batch], None],
    ) -> None:
        self.backend = backend
        self._clock = clock
        self._timeout = timeout
        self._ended = ended
        self._late = late
        self._lanes: dict[str, Lane] = {}

    @property
    def busy(self) -> bool:
        return any(lane.busy for lane in self._lanes.values())

    def reach(self, endpoint: bytes, address: int) -> Lane:
        """The lane to the engine behind `endpoint`, with a connection made or begun. Raises BackendError."""
        peer = self.backend.connect(endpoint, address)
        return self._lanes.setdefault(peer, Lane(peer, endpoint))

    def add(self, endpoint: bytes, address: int, runs: Runs, batch: Batch) -> None:
        """Queue `runs` (absolute addresses) to the engine behind `endpoint`. Nothing is posted before `pump`."""
        try:
            lane = self.reach(endpoint, address)
        except BackendError as error:
            batch.spoil(Outcome.NOTHING_SENT, str(error))
            return
        for part in tickets(runs, self.backend.max_blocks, self.backend.max_bytes):
            lane.waiting.append((part, batch))
            batch.left += 1
        batch.nbytes += runs.total

    def poll(self) -> bool:
        """Look at every ticket once, then post what waits. Returns whether anything ended."""
        moved = False
        for lane in self._lanes.values():
            for posted in list(lane.posted):
                outcome = self.backend.poll(posted.ticket)
                if outcome is not Outcome.PENDING:
                    lane.posted.remove(posted)
                    self.end(posted.batch, outcome, "a write failed")
                    moved = True
        self.pump()
        self._watch()
        return moved

    def pump(self) -> None:
        """Post what waits, as far as the lanes take it. A batch that is spoiled posts no more."""
        for lane in self._lanes.values():
            if lane.waiting and not self._is_ready(lane):
                continue
            while lane.waiting and len(lane.posted) < self.backend.max_posts:
                runs, batch = lane.waiting.popleft()
                if batch.outcome is not Outcome.DONE or batch.late:
                    self.end(batch, Outcome.NOTHING_SENT, "another write of the batch failed")
                    continue
                try:
                    ticket = self.backend.post(lane.peer, runs)
                except BackendError as error:
                    self.end(batch, Outcome.NOTHING_SENT, str(error))
                    continue
                lane.posted.append(Posted(ticket, batch, self._clock() + self._timeout))

    def _is_ready(self, lane: Lane) -> bool:
        """Whether the lane's peer is connected; what waits for one that cannot be is failed."""
        if not lane.ready:
            try:
                lane.ready = self.backend.connected(lane.peer)
            except BackendError as error:
                waiting, lane.waiting = lane.waiting, deque()
                for _, batch in waiting:
                    self.end(batch, Outcome.NOTHING_SENT, str(error))
        return lane.ready

    def _watch(self) -> None:
        now = self._clock()
        for lane in self._lanes.values():
            for posted in lane.posted:
                batch = posted.batch
                if now >= posted.deadline and not batch.late:
                    batch.late = True
                    batch.reason = batch.reason or f"a write took longer than {self._timeout:g} s"
                    self._late(batch)

    def drop(self, which: Callable[[Batch], bool], reason: str) -> None:
        """Fail what waits of these batches; what is posted goes on."""
        for lane in self._lanes.values():
            dropped = [batch for _, batch in lane.waiting if which(batch)]
            lane.waiting = deque(entry for entry in lane.waiting if not which(entry[1]))
            for batch in dropped:
                self.end(batch, Outcome.NOTHING_SENT, reason)

    def forget(self, keep: set[bytes]) -> None:
        """Disconnect from engines that are not among these endpoints, unless a write to them is under way."""
        for lane in [lane for lane in self._lanes.values() if lane.endpoint not in keep and not lane.busy]:
            del self._lanes[lane.peer]
            self.backend.disconnect(lane.peer)

    def end(self, batch: Batch, outcome: Outcome, reason: str) -> None:
        """One ticket of the batch ended."""
        batch.left -= 1
        if outcome is not Outcome.DONE:
            batch.spoil(outcome, reason)
        if batch.left == 0:
            self._ended(batch)

    def close(self) -> None:
        """Tear the engine down, then end everything that it had under way."""
        self.backend.close()
        lanes, self._lanes = list(self._lanes.values()), {}
        for lane in lanes:
            for posted in lane.posted:
                self.end(posted.batch, Outcome.BROKEN, "the engine was closed")
            for _, batch in lane.waiting:
                self.end(batch, Outcome.NOTHING_SENT, "the engine was closed")
