"""What a rank does with its commands, and that commands and reports survive the way to a follower."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
from support.handoff_workers import LAYOUT, Pool

from baton_serving.handoff.backends.base import BackendError, Outcome, TransferBackend, Transport
from baton_serving.handoff.backends.fake import FakeFabric, Script, smoothly
from baton_serving.handoff.layout import PeerDescriptor, rank_slice
from baton_serving.handoff.plan import Runs, tickets
from baton_serving.handoff.protocol import Key, PageDigest
from baton_serving.handoff.ranks import (
    CancelWrites,
    CloseEpochs,
    Digested,
    DigestPages,
    EpochFailed,
    EpochOpened,
    EpochsClosed,
    Introduce,
    OpenEpoch,
    PageCopy,
    Part,
    PostWrites,
    RankCommand,
    RankExecutor,
    RankFailed,
    RankReport,
    Wrote,
)

KEY = Key("t", 0)
SLICE = rank_slice(LAYOUT, 1, 0)


def describe(name: str, *ranks: EpochOpened) -> PeerDescriptor:
    return PeerDescriptor(
        version=1,
        worker=name,
        incarnation=name,
        weights="w",
        engine="e",
        layout=LAYOUT,
        tp_size=1,
        pp_size=1,
        backend="fake",
        epoch=1,
        ranks=tuple(report.descriptor for report in ranks),
    )


@dataclass
class Rig:
    """A rank that writes, a pool that it writes into, and a clock to set."""

    script: Script | None = None
    now: float = 0.0
    reports: list[RankReport] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.fabric = FakeFabric(clock=lambda: self.now, director=self._direct)
        self.source, self.target = Pool(SLICE.shape.page_bytes, 200), Pool(SLICE.shape.page_bytes, 200)
        self.source.pages[:] = np.arange(200, dtype=np.uint8)[:, None]
        self.executor = self._executor("a", self.source, self.reports)
        others: list[RankReport] = []
        self.other = self._executor("b", self.target, others)
        self.other.execute(OpenEpoch(1))
        self.executor.execute(OpenEpoch(1))
        mine, theirs = self.reports.pop(), others.pop()
        assert isinstance(mine, EpochOpened)
        assert isinstance(theirs, EpochOpened)
        self.mine, self.theirs = describe("a", mine), describe("b", theirs)
        self.executor.execute(Introduce(7, self.mine, self.theirs))

    def _executor(self, name: str, pool: Pool, reports: list[RankReport]) -> RankExecutor:
        return RankExecutor(
            0,
            SLICE,
            pool.memory,
            self.fabric.backend,
            reports.append,
            clock=lambda: self.now,
            write_timeout=5.0,
            name=name,
        )

    def _direct(self, source: str, target: str, blocks: int) -> Script:
        return self.script or smoothly(source, target, blocks)

    def post(self, pages: int, batch: int = 0, target: int = 0) -> None:
        """Page n to page n, every other one so that none merge."""
        numbers = list(range(1, 2 * pages, 2))
        self.executor.execute(PostWrites(7, KEY, batch, [PageCopy(0, numbers, numbers, [n + target for n in numbers])]))

    def at(self, now: float) -> list[RankReport]:
        self.now = now
        self.executor.poll()
        found, self.reports[:] = list(self.reports), []
        return found


def wrote(reports: list[RankReport]) -> list[tuple[int, Outcome]]:
    return [(report.batch, report.outcome) for report in reports if isinstance(report, Wrote)]


def test_writes_are_cut_into_tickets_and_all_of_them_must_end() -> None:
    rig = Rig()
    rig.post(90)
    ended = [entry for now in (0.1, 0.2) for entry in wrote(rig.at(now))]
    assert ended == [(0, Outcome.DONE)]
    numbers = np.arange(1, 180, 2)
    assert (rig.target.pages[numbers, 0] == numbers).all()
    assert rig.target.pages[np.arange(2, 180, 2)].sum() == 0
    assert not rig.executor.busy


def test_a_write_past_its_deadline_is_reported_twice() -> None:
    rig = Rig(script=Script([[9.0]]))
    rig.post(1)
    assert wrote(rig.at(4.9)) == []
    assert wrote(rig.at(5.1)) == [(0, Outcome.HUNG)]
    assert wrote(rig.at(8.0)) == []
    assert wrote(rig.at(9.1)) == [(0, Outcome.DONE)]


def test_waiting_in_the_lane_is_no_fault_of_the_peer() -> None:
    rig = Rig(script=Script([[4.0]]))
    for batch in range(6):
        rig.post(1, batch)
    ended = [entry for now in (4.0, 8.0, 12.0) for entry in wrote(rig.at(now))]
    assert ended == [(batch, Outcome.DONE) for batch in range(6)]


def test_a_cancelled_transfer_posts_nothing_more_and_ends_with_what_is_posted() -> None:
    rig = Rig(script=Script([[1.0]]))
    for batch in range(4):
        rig.post(1, batch, target=batch * 10)
    rig.executor.execute(CancelWrites(KEY))
    assert wrote(rig.at(0.5)) == [(2, Outcome.NOTHING_SENT), (3, Outcome.NOTHING_SENT)]
    assert wrote(rig.at(1.0)) == [(0, Outcome.DONE), (1, Outcome.DONE)]
    assert not rig.target.pages[[21, 31]].any()


def test_closing_an_epoch_ends_its_writes_before_it_says_so() -> None:
    rig = Rig(script=Script([[50.0]]))
    for batch in range(3):
        rig.post(1, batch)
    rig.executor.execute(OpenEpoch(2))
    rig.executor.execute(CloseEpochs(1))
    opened, *rest = rig.at(1.0)
    assert isinstance(opened, EpochOpened)
    assert wrote(rest) == [(0, Outcome.BROKEN), (1, Outcome.BROKEN), (2, Outcome.NOTHING_SENT)]
    assert rest[-1] == EpochsClosed(0, 1)
    rig.script = None
    rig.post(1, 3)
    assert wrote(rig.at(1.1)) == [(3, Outcome.DONE)]


def test_a_page_outside_the_peers_pool_is_never_written() -> None:
    rig = Rig()
    rig.post(2, target=198)
    (report,) = rig.at(0.1)
    assert isinstance(report, Wrote)
    assert report.outcome is Outcome.NOTHING_SENT
    assert "outside the pool" in report.reason


def test_a_link_that_is_gone_or_an_engine_that_is_closed_sends_nothing() -> None:
    rig = Rig()
    rig.other.close()
    rig.post(1, 0)
    rig.executor.execute(Part(7))
    rig.post(1, 1)
    assert wrote(rig.at(0.1)) == [(0, Outcome.NOTHING_SENT), (1, Outcome.NOTHING_SENT)]


def test_an_engine_that_does_not_open_is_reported() -> None:
    def broken(name: str) -> TransferBackend:
        raise BackendError("no such device")

    reports: list[RankReport] = []
    executor = RankExecutor(3, SLICE, Pool(SLICE.shape.page_bytes, 2).memory, broken, reports.append)
    executor.execute(OpenEpoch(1))
    assert reports == [EpochFailed(3, 1, "no such device")]


@pytest.mark.parametrize("limit", [1, 7, 10, 64, 1000])
def test_tickets_keep_order_and_limits(limit: int) -> None:
    sizes = np.array([3, 30, 1, 1, 8, 100, 2], dtype=np.int64)
    starts = np.cumsum(sizes) * 3
    plan = Runs(starts, starts + 5, sizes)
    parts = list(tickets(plan, 3, limit))
    assert all(part.total <= limit and len(part) <= 3 for part in parts)

    def cells(runs: Runs) -> list[tuple[int, int]]:
        return [
            (int(src) + n, int(dst) + n)
            for src, dst, size in zip(runs.src, runs.dst, runs.nbytes, strict=True)
            for n in range(size)
        ]

    assert [cell for part in parts for cell in cells(part)] == cells(plan)
    assert list(tickets(plan[:0], 3, limit)) == []


def test_commands_and_reports_survive_the_way_to_a_follower() -> None:
    rig = Rig()
    copies = [PageCopy(0, [1], [2], [3])]
    commands: list[RankCommand] = [
        OpenEpoch(2),
        CloseEpochs(1),
        Introduce(7, rig.mine, rig.theirs),
        Part(7),
        PostWrites(7, KEY, 1, copies, True),
        CancelWrites(KEY),
        DigestPages(7, KEY, copies),
    ]
    for command in commands:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(command), type=RankCommand) == command
    reports: list[RankReport] = [
        EpochOpened(0, 1, rig.mine.ranks[0], Transport("auto", "tcp"), True),
        EpochFailed(0, 1, "r"),
        EpochsClosed(0, 1),
        Wrote(1, KEY, 2, Outcome.HUNG, 5, 0.5, [PageDigest(0, 1, 0, 3, 2**64 - 1)], "r"),
        Digested(0, KEY, [PageDigest(0, 1, 0, 3, 4)]),
        RankFailed(0, "r"),
    ]
    for report in reports:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(report), type=RankReport) == report
