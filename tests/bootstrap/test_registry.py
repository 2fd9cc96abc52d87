"""The registry's rules one by one, then all of them under random histories."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from baton_bootstrap.client.view import ReplicaView
from baton_bootstrap.errors import LeaseLost, Refused
from baton_bootstrap.records import Beat, Departure, Load, Role, State, Worker
from baton_bootstrap.registry import Change, Lease, Registry

MakeWorker = Callable[..., Worker]

READY = Beat(state=State.READY, tick=1)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> Registry:
    return Registry(instance="a", lease=3.0, clock=clock, warming=3.0)


def test_a_newer_incarnation_takes_the_place_and_an_older_one_is_refused(
    registry: Registry, make_worker: MakeWorker
) -> None:
    old, new = make_worker(), make_worker()
    first = registry.register(old, READY)
    registry.register(new, READY)
    assert [entry.worker for entry in registry.find("prefill-0")] == [new]
    with pytest.raises(LeaseLost):
        registry.beat(first, READY)
    with pytest.raises(Refused, match="not newer"):
        registry.register(old, READY)


def test_requests_that_gateways_hold_are_added_up_and_forgotten(registry: Registry, clock: Clock) -> None:
    registry.hold("a", 3)
    registry.hold("b", 2)
    registry.hold("a", 4)
    assert registry.waiting == 6
    registry.hold("b", 0)
    assert registry.waiting == 4
    clock.now += 3.0
    assert registry.waiting == 0
    for name in ("", "x" * 600):
        with pytest.raises(Refused, match=r"waiting\.gateway"):
            registry.hold(name, 1)


def test_an_equal_epoch_under_another_incarnation_is_refused(registry: Registry, make_worker: MakeWorker) -> None:
    registry.register(make_worker(epoch=5, incarnation="a"), READY)
    with pytest.raises(Refused, match="id of its own"):
        registry.register(make_worker(epoch=5, incarnation="ab"), READY)


def test_an_old_session_of_the_same_incarnation_cannot_remove_the_new_one(
    registry: Registry, make_worker: MakeWorker
) -> None:
    worker = make_worker()
    old = registry.register(worker, READY)
    new = registry.register(worker, READY)
    assert not registry.leave(old, Departure.BROKEN)
    assert registry.find(worker.id)
    assert registry.leave(new, Departure.LEFT)
    assert not registry.leave(new, Departure.LEFT)


def test_keys_are_compared_whole_and_shared_keys_name_all_owners(registry: Registry, make_worker: MakeWorker) -> None:
    one = make_worker("p-1", keys=("10.0.0.1:8998", "shared:1"))
    two = make_worker("p-10", keys=("10.0.0.1:89980", "shared:1"))
    registry.register(one, READY)
    lease = registry.register(two, READY)
    assert [entry.worker.id for entry in registry.find("10.0.0.1:8998")] == ["p-1"]
    assert [entry.worker.id for entry in registry.find("p-1")] == ["p-1"]
    assert [entry.worker.id for entry in registry.find("shared:1")] == ["p-10", "p-1"]
    registry.leave(lease, Departure.LEFT)
    assert [entry.worker.id for entry in registry.find("shared:1")] == ["p-1"]
    assert registry.find("") == ()


def test_silence_for_a_lease_removes(registry: Registry, clock: Clock, make_worker: MakeWorker) -> None:
    lease = registry.register(make_worker(), READY)
    clock.now += 2.9
    registry.beat(lease, READY)
    clock.now += 2.9
    assert registry.sweep() == []
    clock.now += 0.1
    assert registry.sweep() == ["prefill-0"]
    delta = registry.changes_since(1)
    assert delta is not None
    assert delta.removed == {"prefill-0": Departure.EXPIRED}
    with pytest.raises(LeaseLost):
        registry.beat(lease, READY)


def test_a_tick_that_stands_still_stalls_and_one_that_moves_heals(
    registry: Registry, clock: Clock, make_worker: MakeWorker
) -> None:
    lease = registry.register(make_worker(), READY)
    for _ in range(3):
        clock.now += 1.0
        change = registry.beat(lease, READY)
    assert change is Change.STATE
    assert registry.find("prefill-0")[0].status.state is State.STALLED
    assert registry.beat(lease, Beat(state=State.READY, tick=2)) is Change.STATE
    assert registry.find("prefill-0")[0].ready


def test_a_stall_shows_even_when_no_beat_comes_in_between(
    registry: Registry, clock: Clock, make_worker: MakeWorker
) -> None:
    lease = registry.register(make_worker(), READY)
    clock.now += 2.0
    registry.beat(lease, READY)
    clock.now += 1.0
    assert registry.sweep() == []
    assert registry.find("prefill-0")[0].status.state is State.STALLED


def test_a_declared_long_turn_and_a_start_are_no_stall(
    registry: Registry, clock: Clock, make_worker: MakeWorker
) -> None:
    busy = registry.register(make_worker("busy"), Beat(state=State.READY, tick=7, busy_seconds=60.0))
    starting = registry.register(make_worker("starting"), Beat(state=State.STARTING))
    for _ in range(58):
        clock.now += 1.0
        assert registry.beat(busy, Beat(state=State.READY, tick=7)) is Change.NONE
        assert registry.beat(starting, Beat(state=State.STARTING)) is Change.NONE
    clock.now += 2.0
    assert registry.beat(busy, Beat(state=State.READY, tick=7)) is Change.STATE


def test_warming_ends_by_the_clock(registry: Registry, clock: Clock) -> None:
    assert registry.snapshot().warming
    clock.now += 3.0
    assert not registry.snapshot().warming


def test_a_beat_tells_what_changed(registry: Registry, make_worker: MakeWorker) -> None:
    lease = registry.register(make_worker(), READY)
    assert registry.beat(lease, Beat(state=State.READY, tick=2)) is Change.NONE
    assert registry.beat(lease, Beat(state=State.READY, tick=3, load=Load(running=1))) is Change.LOAD
    assert registry.beat(lease, Beat(state=State.DRAINING, tick=4, load=Load(running=1))) is Change.STATE


def test_changes_that_can_no_longer_be_told_are_a_gap(clock: Clock, make_worker: MakeWorker) -> None:
    registry = Registry(instance="a", lease=3.0, clock=clock, departures=2)
    for number in range(4):
        registry.leave(registry.register(make_worker(f"w{number}"), READY), Departure.LEFT)
    assert registry.changes_since(0) is None
    assert registry.changes_since(registry.revision + 1) is None
    delta = registry.changes_since(4)
    assert delta is not None
    assert set(delta.removed) == {"w2", "w3"}


def test_a_worker_that_left_twice_is_told_of_at_its_second_leaving(registry: Registry, make_worker: MakeWorker) -> None:
    def come_and_go(name: str) -> None:
        registry.leave(registry.register(make_worker(name), READY), Departure.LEFT)

    come_and_go("a")
    come_and_go("b")
    seen = registry.revision
    come_and_go("a")
    delta = registry.changes_since(seen)
    assert delta is not None
    assert set(delta.removed) == {"a"}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"worker_id": ""}, "worker.id"),
        ({"incarnation": ""}, "worker.incarnation"),
        ({"http_url": ""}, "worker.http_url"),
        ({"epoch": 0}, "worker.epoch"),
        ({"model": "m" * 513}, "worker.model"),
        ({"keys": tuple(f"k{i}" for i in range(17))}, "worker.keys"),
        ({"keys": ("",)}, "worker.keys"),
        ({"detail": b"x" * (64 * 1024 + 1)}, "worker.detail"),
    ],
)
def test_fields_out_of_bounds_are_refused_by_name(
    registry: Registry, make_worker: MakeWorker, fields: dict[str, object], named: str
) -> None:
    with pytest.raises(Refused, match=named):
        registry.register(make_worker(**fields), READY)
    assert registry.revision == 0


class RegistryMachine(RuleBasedStateMachine):
    """A registry with a tiny memory, a plain dict of who should be alive, and watchers that poll at random times."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.registry = Registry(instance="a", lease=5.0, clock=self.clock, departures=3)
        self.leases: list[Lease] = []
        self.alive: dict[str, tuple[Lease, Worker, float]] = {}
        self.epoch = 0
        self.watchers = [ReplicaView().with_snapshot(self.registry.snapshot()) for _ in range(3)]

    @rule(number=st.integers(0, 5), again=st.booleans())
    def register(self, number: int, again: bool) -> None:
        worker_id = f"w{number}"
        if again and worker_id in self.alive:
            worker = self.alive[worker_id][1]
        else:
            self.epoch += 1
            worker = Worker(
                id=worker_id,
                incarnation=str(self.epoch),
                epoch=self.epoch,
                role=Role.BOTH,
                http_url="http://w",
                keys=(f"host:{number % 2}",),
            )
        lease = self.registry.register(worker, READY)
        self.leases.append(lease)
        self.alive[worker_id] = (lease, worker, self.clock.now)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), state=st.sampled_from([State.STARTING, State.READY]), running=st.integers(0, 2))
    def beat(self, data: st.DataObject, state: State, running: int) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        beat = Beat(state=state, tick=running, load=Load(running=running))
        held = self.alive.get(lease.worker_id)
        if held is not None and held[0] == lease:
            self.registry.beat(lease, beat)
            self.alive[lease.worker_id] = (lease, held[1], self.clock.now)
        else:
            with pytest.raises(LeaseLost):
                self.registry.beat(lease, beat)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        held = self.alive.get(lease.worker_id)
        expected = held is not None and held[0] == lease
        assert self.registry.leave(lease, Departure.BROKEN) is expected
        if expected:
            del self.alive[lease.worker_id]

    @rule(seconds=st.floats(0.5, 4.0))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        expired = {key for key, (_, _, heard) in self.alive.items() if self.clock.now - heard >= 5.0}
        assert set(self.registry.sweep()) == expired
        for key in expired:
            del self.alive[key]

    @rule(index=st.integers(0, 2))
    def poll(self, index: int) -> None:
        delta = self.registry.changes_since(self.watchers[index].revision)
        snapshot = self.registry.snapshot()
        if delta is None:
            self.watchers[index] = ReplicaView().with_snapshot(snapshot)
        else:
            followed = self.watchers[index].with_delta(delta)
            assert followed is not None
            self.watchers[index] = followed
        truth = {entry.worker.id: entry for entry in snapshot.entries}
        assert dict(self.watchers[index].entries) == truth

    @invariant()
    def exactly_the_living_are_listed_and_found(self) -> None:
        workers = {key: worker for key, (_, worker, _) in self.alive.items()}
        assert {entry.worker.id: entry.worker for entry in self.registry.snapshot().entries} == workers
        for side in range(2):
            expected = [worker for worker in workers.values() if f"host:{side}" in worker.keys]
            expected.sort(key=lambda worker: -worker.epoch)
            assert [entry.worker for entry in self.registry.find(f"host:{side}")] == expected


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
