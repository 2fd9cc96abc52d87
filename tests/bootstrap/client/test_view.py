"""Merging what several replicas say."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from baton_bootstrap.client.view import ReplicaView, View, merge
from baton_bootstrap.errors import Ambiguous, NotFound
from baton_bootstrap.records import Delta, Entry, Snapshot, State, Status, Worker

MakeWorker = Callable[..., Worker]


@pytest.fixture
def entry(make_worker: MakeWorker) -> Callable[..., Entry]:
    def make(worker_id: str, state: State = State.READY, **fields: object) -> Entry:
        return Entry(worker=make_worker(worker_id, **fields), status=Status(state=state))

    return make


def replica(*entries: Entry, connected: bool = True, warming: bool = False) -> ReplicaView:
    snapshot = Snapshot(instance="i", revision=5, warming=warming, entries=entries)
    view = ReplicaView().with_snapshot(snapshot)
    return view if connected else view.lost()


def test_the_later_incarnation_wins(entry: Callable[..., Entry]) -> None:
    old, new = entry("w"), entry("w")
    assert merge([replica(new), replica(old)], {}) == {"w": new}
    assert merge([replica(old), replica(new)], {}) == {"w": new}


def test_a_replica_that_sees_ticks_overrules_one_that_does_not(entry: Callable[..., Entry]) -> None:
    seen = entry("w")
    stalled = Entry(worker=seen.worker, status=Status(state=State.STALLED))
    assert merge([replica(stalled), replica(seen)], {}) == {"w": seen}


def test_a_worker_known_to_one_trusted_replica_is_alive_and_to_none_is_gone(entry: Callable[..., Entry]) -> None:
    here, there, gone = entry("here"), entry("there"), entry("gone")
    merged = merge([replica(here), replica(there), replica(gone, connected=False)], {"gone": gone})
    assert merged == {"here": here, "there": there}


def test_without_a_trusted_replica_the_last_view_stays(entry: Callable[..., Entry]) -> None:
    kept, back = entry("kept"), entry("back")
    assert merge([replica(connected=False)], {"kept": kept}) == {"kept": kept}
    assert merge([replica(back, warming=True)], {"kept": kept}) == {"kept": kept, "back": back}


def test_a_warming_replica_replaces_what_the_last_view_knew_of_a_worker(entry: Callable[..., Entry]) -> None:
    before = entry("w")
    after = Entry(worker=before.worker, status=Status(state=State.DRAINING))
    assert merge([replica(after, warming=True)], {"w": before}) == {"w": after}


def test_a_delta_that_does_not_follow_is_a_gap(entry: Callable[..., Entry]) -> None:
    view = replica(entry("w"))
    assert view.with_delta(Delta(base=4, revision=6, warming=False)) is None
    assert view.with_delta(Delta(base=6, revision=7, warming=False)) is None
    assert view.with_delta(Delta(base=5, revision=6, warming=False, changed={"x": Status()})) is None
    assert view.lost().with_delta(Delta(base=5, revision=6, warming=False)) is None
    assert view.with_delta(Delta(base=5, revision=5, warming=True)) is not None


def test_find_by_id_or_key_never_guesses(entry: Callable[..., Entry]) -> None:
    one = entry("p-1", keys=("h:1", "h:2"))
    two = entry("p-2", keys=("h:2",))
    view = View(entries={"p-1": one, "p-2": two})
    assert view.find("p-1") is one
    assert view.find("h:1") is one
    with pytest.raises(Ambiguous, match=r"p-1.*p-2"):
        view.find("h:2")
    with pytest.raises(NotFound):
        view.find("h:")
