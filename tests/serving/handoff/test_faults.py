"""Random fault schedules over simulated workers: nothing is corrupted, lost, freed twice or left hanging.

And the proof that the simulation would notice: bugs planted in subclasses are caught by the same schedules.
"""

from __future__ import annotations

from functools import partial

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from support.handoff_node import Fault, Node, NodeRim, Plan, Request, Violation
from support.handoff_world import MakeCore, World

from baton_serving.handoff.backends.base import Outcome
from baton_serving.handoff.core import HandoffCore
from baton_serving.handoff.layout import PeerDescriptor
from baton_serving.handoff.machines import ReceiveEvent, ReceiveState
from baton_serving.handoff.ranks import RankReport, Wrote
from baton_serving.handoff.receiving import Receive
from baton_serving.handoff.rim import Limits


def test_a_calm_run_delivers_everything() -> None:
    requests = [Request(at=0.5 + 0.2 * n, source=n % 2, target=1 - n % 2, pages=3, chunks=2) for n in range(6)]
    world = World(Plan([1, 2], requests, [], trouble=0.0, loss=0.0, seed=1))
    world.run()
    assert world.outcome == {n: ["arrived"] for n in range(6)}


def plans(trouble: tuple[float, ...] = (0.0, 0.1, 0.4)) -> st.SearchStrategy[Plan]:
    """Schedules of a few requests and faults over two or three workers."""
    workers = st.lists(st.sampled_from([1, 1, 2]), min_size=2, max_size=3)
    return st.tuples(workers, st.integers(0, 5)).flatmap(lambda drawn: _plans_over(trouble, drawn[0], drawn[1] == 5))


def _plans_over(trouble: tuple[float, ...], sizes: list[int], alone: bool) -> st.SearchStrategy[Plan]:
    index = st.integers(0, len(sizes) - 1)
    pair = st.tuples(index, index).filter(lambda ends: ends[0] != ends[1])
    moments = st.integers(0, 60).map(lambda tenth: tenth / 10)
    maybe = st.none() | st.integers(0, 20).map(lambda tenth: tenth / 20)
    request = st.builds(
        lambda ends, **rest: Request(source=ends[0], target=ends[1], **rest),
        ends=pair,
        at=moments,
        pages=st.integers(1, 5),
        chunks=st.integers(1, 3),
        join_lag=st.sampled_from([0.0, 0.0, -0.3, 0.3, 2.0]),
        compute=st.sampled_from([0.0, 0.02, 0.3]),
        prefix=st.sampled_from([0, 0, 1, 5]),
        abort_source=maybe,
        abort_target=maybe,
    )
    fault = st.builds(
        Fault,
        at=moments,
        kind=st.sampled_from(["kill", "hang", "freeze", "cut", "noise", "lie"]),
        worker=index,
        lasts=st.sampled_from([0.2, 1.0, 3.0, 8.0]),
    )
    return st.builds(
        Plan,
        workers=st.just([1] * len(sizes) if alone else sizes),
        requests=st.lists(request, min_size=1, max_size=8),
        faults=st.lists(fault, max_size=4),
        trouble=st.sampled_from(trouble),
        loss=st.just(0.0) if alone else st.sampled_from([0.0, 0.0, 0.02]),
        seed=st.integers(0, 2**32 - 1),
        alone=st.just(alone),
    )


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans())
def test_random_faults_break_no_promise(plan: Plan) -> None:
    World(plan).run()


@pytest.mark.deep
@pytest.mark.timeout(3600)
@settings(max_examples=12_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(plans())
def test_many_random_faults_break_no_promise(plan: Plan) -> None:
    World(plan).run()


class FreesByTimer(HandoffCore):
    """The planted bug: quarantined pages are given back after a second, whatever the writer does."""

    def __init__(self, blank: PeerDescriptor, rim: NodeRim, limits: Limits) -> None:
        super().__init__(blank, rim, limits)
        self._since: dict[int, tuple[Receive, float]] = {}

    def turn(self, now: float, tick: int, busy: float) -> None:
        super().turn(now, tick, busy)
        for receive in self.receives:
            if receive.state is ReceiveState.DRAINING:
                since = self._since.setdefault(id(receive), (receive, now))[1]
                if now - since > 1.0:
                    self.receives._fire(receive, ReceiveEvent.FENCED)


class TrustsFailedWrites(HandoffCore):
    """The planted bug: a write that failed is taken for one that can no longer land."""

    def report(self, report: RankReport, now: float) -> None:
        if isinstance(report, Wrote) and report.outcome is Outcome.BROKEN:
            report = msgspec.structs.replace(report, outcome=Outcome.NOTHING_SENT)
        super().report(report, now)


class FreesBeforeClosing(HandoffCore):
    """The planted bug: opening the new engine is taken for having closed the old one."""

    def turn(self, now: float, tick: int, busy: float) -> None:
        self.receives.closed(self.fencing.own_epoch, True, now)
        super().turn(now, tick, busy)


def breaks_a_promise(make_core: MakeCore, plan: Plan) -> bool:
    try:
        World(plan, make_core).run()
    except Violation:
        return True
    return False


@pytest.mark.parametrize("bug", [FreesByTimer, TrustsFailedWrites, FreesBeforeClosing])
def test_a_planted_bug_is_caught(bug: MakeCore) -> None:
    found = settings(max_examples=2000, deadline=None, phases=[Phase.generate], derandomize=True)
    try:
        plan = find(plans(trouble=(0.4,)), partial(breaks_a_promise, bug), settings=found)
    except NoSuchExample:
        pytest.fail(f"no schedule shows that {bug} is wrong")
    assert not breaks_a_promise(HandoffCore, plan), "the same schedule breaks the real thing"


def test_pages_that_are_still_read_are_watched_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that frees source pages with the failure, before the writes ended, is caught as well."""

    def free_at_once(node: Node, legs: object, event: object, how: str, quiet: bool) -> None:
        ended(node, legs, event, how, True)  # type: ignore[arg-type]

    ended = Node._ended
    monkeypatch.setattr(Node, "_ended", free_at_once)
    monkeypatch.setattr(Node, "_quiet", lambda node, legs, event: None)
    found = settings(max_examples=2000, deadline=None, phases=[Phase.generate], derandomize=True)
    assert find(plans(), partial(breaks_a_promise, HandoffCore), settings=found)
