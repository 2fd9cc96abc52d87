"""The door against a plain account of what it must do."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from baton_serving.errors import QueueFull
from baton_serving.gateway.admission.door import Door, DoorConfig
from baton_serving.gateway.admission.fair_queue import CLASSES, class_of
from baton_serving.gateway.admission.ledger import Limits
from baton_serving.gateway.snapshot import RequestFacts


def facts(number: int, tenant: str = "a", priority: int = 0, tokens: int = 100, answer: int = 100) -> RequestFacts:
    return RequestFacts(
        number=number,
        model="m",
        prompt=b"",
        prompt_tokens=tokens,
        max_tokens=answer,
        priority=priority,
        tenant=tenant,
    )


def test_an_open_door_lets_everything_in_and_keeps_no_books_at_the_end() -> None:
    door = Door(DoorConfig())
    assert all(door.offer(facts(n), 0.0) for n in range(100))
    for n in range(100):
        door.leave(n, 10, 1.0)
    assert door.running == door.waiting == 0


def test_who_waits_goes_on_when_somebody_leaves() -> None:
    door = Door(DoorConfig(max_running=1))
    assert door.offer(facts(0), 0.0)
    assert not door.offer(facts(1), 0.0)
    assert list(door.admit(0.0)) == []
    door.leave(0, 10, 1.0)
    assert not door.offer(facts(2), 1.0)  # nobody overtakes those who wait
    assert list(door.admit(1.0)) == [1]


def test_who_waits_too_long_is_refused_once() -> None:
    door = Door(DoorConfig(max_running=1, queue_seconds=5.0))
    door.offer(facts(0), 0.0)
    door.offer(facts(1), 1.0)
    assert list(door.shed(5.9)) == []
    assert list(door.shed(6.0)) == [1]
    assert list(door.shed(7.0)) == []
    door.leave(1, 0, 7.0)
    door.leave(0, 0, 7.0)
    assert list(door.admit(8.0)) == []


def test_a_full_queue_refuses_the_newest_of_the_lowest_class() -> None:
    door = Door(DoorConfig(max_running=1, max_queued=3))
    for number, priority in enumerate([0, -1, -1, 0]):
        door.offer(facts(number, priority=priority), 0.0)
    with pytest.raises(QueueFull) as refused:
        door.offer(facts(4, priority=-1), 0.0)
    assert refused.value.retry_after is not None
    assert refused.value.retry_after >= 1.0
    assert not door.offer(facts(5, priority=1), 0.0)
    assert list(door.shed(0.0)) == [2]
    assert not door.offer(facts(6, priority=0), 0.0)
    assert list(door.shed(0.0)) == [1]
    with pytest.raises(QueueFull):
        door.offer(facts(7, priority=0), 0.0)


def test_one_tenants_flood_does_not_keep_another_out() -> None:
    door = Door(DoorConfig(max_running=1, max_queued=4))
    for number in range(5):
        door.offer(facts(number, "flood"), 0.0)
    assert not door.offer(facts(5, "quiet"), 0.0)
    assert list(door.shed(0.0)) == [4]


def test_a_key_has_its_limit_of_open_requests() -> None:
    door = Door(DoorConfig(limits=Limits(requests=2)))
    assert [door.offer(facts(n), 0.0) for n in range(2)] == [True, True]
    with pytest.raises(QueueFull, match="2 requests open"):
        door.offer(facts(2), 0.0)
    assert door.offer(facts(3, "other"), 0.0)
    door.leave(0, 0, 0.0)
    assert door.offer(facts(4), 0.0)


def test_a_key_has_its_rate_of_tokens_and_gets_back_what_it_did_not_use() -> None:
    door = Door(DoorConfig(limits=Limits(tokens_per_minute=600)))
    assert door.offer(facts(0, tokens=300, answer=200), 0.0)
    with pytest.raises(QueueFull) as refused:
        door.offer(facts(1, tokens=300, answer=200), 0.0)
    assert refused.value.retry_after == pytest.approx(40.0)
    door.leave(0, 100, 0.0)
    assert door.offer(facts(2, tokens=300, answer=200), 0.0)
    assert door.offer(facts(3, "other", tokens=300, answer=200), 0.0)
    with pytest.raises(QueueFull):
        door.offer(facts(4, tokens=300, answer=200), 49.0)
    assert door.offer(facts(5, tokens=300, answer=200), 50.1)


def test_a_keys_own_limits_stand_before_those_of_all() -> None:
    own = {"more": Limits(requests=2), "rated": Limits(tokens_per_minute=200)}
    door = Door(DoorConfig(limits=Limits(requests=1)), own_limits=own.get)
    assert [door.offer(facts(n, "more"), 0.0) for n in range(2)] == [True, True]
    assert door.offer(facts(2, "rated", tokens=50, answer=50), 0.0)
    assert [door.counts(n) for n in (0, 2)] == [False, True]
    for number, tenant in ((3, "more"), (4, "rated"), (5, "a"), (6, "a")):
        if number == 5:
            assert door.offer(facts(number, tenant), 0.0)
        else:
            with pytest.raises(QueueFull, match="requests open"):
                door.offer(facts(number, tenant), 0.0)
    door.leave(2, 150, 0.0)
    with pytest.raises(QueueFull, match="200 tokens a minute"):
        door.offer(facts(7, "rated", tokens=50, answer=50), 0.0)
    own["rated"] = Limits()  # as when the file was changed
    assert door.offer(facts(8, "rated", tokens=500, answer=500), 0.0)


def test_a_request_larger_than_a_minutes_worth_needs_a_full_bucket() -> None:
    door = Door(DoorConfig(limits=Limits(tokens_per_minute=100)))
    assert door.offer(facts(0, tokens=500, answer=500), 0.0)
    door.leave(0, 1000, 0.0)
    with pytest.raises(QueueFull) as refused:
        door.offer(facts(1, tokens=1, answer=1), 0.0)
    assert refused.value.retry_after == pytest.approx((900 + 2) * 60 / 100)


class DoorMachine(RuleBasedStateMachine):
    """Any order of calls: bounds hold, and each request comes to one end."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits(requests=4)
        self.door = Door(DoorConfig(max_running=3, max_queued=4, queue_seconds=10.0, limits=self.limits))
        self.now = 0.0
        self.count = 0
        self.state: dict[int, str] = {}
        self.facts: dict[int, RequestFacts] = {}

    def of(self, *states: str) -> list[int]:
        return [number for number, state in self.state.items() if state in states]

    @rule(tenant=st.sampled_from("abc"), priority=st.integers(-1, 1), tokens=st.integers(1, 500))
    def offer(self, tenant: str, priority: int, tokens: int) -> None:
        number, self.count = self.count, self.count + 1
        asked = facts(number, tenant, priority, tokens)
        theirs = [n for n, f in self.facts.items() if f.tenant == tenant and self.state[n] != "gone"]
        try:
            runs = self.door.offer(asked, self.now)
        except QueueFull:
            waiting = self.of("waiting")
            lowest = min((CLASSES.index(class_of(self.facts[n].priority)) for n in waiting), default=9)
            full = len(waiting) >= 4 and CLASSES.index(class_of(priority)) <= lowest
            assert full or len(theirs) >= 4
            return
        assert len(theirs) < 4
        self.facts[number] = asked
        self.state[number] = "running" if runs else "waiting"
        if runs:
            assert len(self.of("running")) <= 3
        elif len(self.of("waiting")) > 4:
            self.take_shed(pushed_out=True)

    def take_shed(self, pushed_out: bool = False) -> None:
        gone = list(self.door.shed(self.now))
        assert len(set(gone)) == len(gone)
        assert gone or not pushed_out
        for number in gone:
            assert self.state[number] == "waiting"
            self.state[number] = "shed"

    @rule()
    def admit(self) -> None:
        room = 3 - len(self.of("running"))
        waiting = self.of("waiting")
        admitted = list(self.door.admit(self.now))
        assert len(admitted) == min(room, len(waiting))
        for number in admitted:
            assert self.state[number] == "waiting"
            self.state[number] = "running"

    @rule(passed=st.floats(0, 12))
    def wait(self, passed: float) -> None:
        self.now += passed
        self.take_shed()

    @precondition(lambda self: self.of("running", "waiting", "shed"))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.of("running", "waiting", "shed")))
        self.door.leave(number, 50, self.now)
        self.state[number] = "gone"

    @invariant()
    def counts_agree(self) -> None:
        assert self.door.waiting == len(self.of("waiting"))
        assert self.door.waiting <= 4

    def teardown(self) -> None:
        for number in self.of("running", "waiting", "shed"):
            self.door.leave(number, 0, self.now)
        assert self.door.waiting == self.door.running == 0
        last = facts(self.count)
        assert self.door.offer(last, self.now)
        self.door.leave(self.count, 0, self.now)


TestDoorMachine = DoorMachine.TestCase
TestDoorMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
