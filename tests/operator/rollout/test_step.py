"""The planner against a fleet that fails as it likes: a serving set at every instant, and an end in bounded time."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import hypothesis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton_operator.rollout import (
    Health,
    Memory,
    Order,
    Phase,
    Policy,
    Seen,
    Stage,
    Step,
    Strategy,
    Target,
    Worker,
    in_place,
    serving,
    serving_sets,
    step,
)
from baton_operator.rollout.model import DECODE, PREFILL, WHOLE

TICK = 10.0
BOUND = 1500


def fleet(prefill: int, decode: int, whole: int = 0, version: str = "v1") -> dict[str, Worker]:
    roles = [PREFILL] * prefill + [DECODE] * decode + [WHOLE] * whole
    made = [Worker(f"{role}-{at}", role, version, ready=True, order=at) for at, role in enumerate(roles)]
    return {worker.id: worker for worker in made}


@dataclass
class World:
    """Workers, gateways and health as a planner could find them; `broken` versions are refused by who stages them, and
    never become ready where they are started; `bad` ones serve, but not well."""

    workers: dict[str, Worker]
    draw: random.Random
    target: Target
    policy: Policy
    broken: set[str] = field(default_factory=set)
    bad: set[str] = field(default_factory=set)
    memory: Memory = field(default_factory=Memory)
    admitted: frozenset[str] = frozenset({"v1"})
    now: float = 0.0
    made: int = 100
    orders: dict[str, tuple[Order, str]] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()
    probed: set[str] = field(default_factory=set)
    starting: set[str] = field(default_factory=set)
    story: list[str] = field(default_factory=list)

    @property
    def seen(self) -> Seen:
        health = {
            version: Health(100, 50 if version in self.bad else 0, 0.1, probe=True if version in self.probed else None)
            for version in {worker.version for worker in self.workers.values()}
        }
        return Seen(tuple(self.workers.values()), self.admitted, self.now, health)

    def plan(self) -> Step:
        planned = step(self.target, self.policy, self.seen, self.memory)
        self.memory = planned.memory
        self.story.append(f"{self.now:g} {planned.memory.phase} {planned.message}")
        return planned

    def obey(self, planned: Step) -> None:
        """Take the orders over; workers follow them in their own time."""
        self.whole = planned.whole
        self.orders = {worker: (order, planned.version) for worker, order in planned.orders.items()}
        if planned.probe:
            self.probed.add(planned.probe)
        for (role, version), count in planned.counts.items():
            there = sum(w.role == role and w.version == version for w in self.workers.values())
            for _ in range(count - there):
                self.made += 1
                name = f"{role}-{self.made}"
                self.workers[name] = Worker(name, role, version, ready=False, order=self.made)
                self.starting.add(name)

    def live(self) -> None:
        """Every worker takes a step or none, in any order, and gateways hear of it sooner or later."""
        names = list(self.workers)
        self.draw.shuffle(names)
        for name in names:
            if self.draw.random() < 0.7:
                self.advance(name)
                self.check()
        if self.draw.random() < 0.6:
            self.admitted = frozenset(serving_sets(self.workers.values()))
        self.now += TICK

    def advance(self, name: str) -> None:
        worker = self.workers[name]
        order, goal = self.orders.get(name, (Order.KEEP, worker.version))
        if order is Order.STOP:
            del self.workers[name]
            return
        if not worker.ready and worker.stage is Stage.SERVING:
            if worker.version not in self.broken:
                self.workers[name] = replace(worker, ready=True)
            elif self.draw.random() < 0.5:
                self.workers[name] = replace(worker, stage=Stage.FAILED, heard=worker.version, error="damaged")
            return
        if order is Order.KEEP or worker.version == goal:
            whole = name in self.whole
            self.workers[name] = replace(worker, ready=True, stage=Stage.SERVING, heard=goal, whole=whole)
        elif worker.heard != goal or worker.stage is Stage.SERVING:
            failed = goal in self.broken
            stage = Stage.FAILED if failed else Stage.STAGED
            self.workers[name] = replace(worker, ready=True, stage=stage, heard=goal, digest=goal, error="damaged")
        elif order is Order.SWITCH and worker.stage is Stage.STAGED:
            self.workers[name] = replace(worker, ready=False, stage=Stage.SWITCHING)
        elif order is Order.SWITCH and worker.stage is Stage.SWITCHING:
            whole = name in self.whole
            self.workers[name] = replace(worker, version=goal, ready=True, stage=Stage.SERVING, whole=whole)
        elif worker.stage is Stage.SWITCHING:
            self.workers[name] = replace(worker, ready=True, stage=Stage.STAGED)

    def die(self) -> None:
        """A worker dies and comes back as it was, where that alone breaks nothing that orders do not break besides."""
        leaving = {name for name, (order, _) in self.orders.items() if order in (Order.STOP, Order.SWITCH)}
        name = self.draw.choice(list(self.workers))
        told = [replace(one, whole=one.whole and one.id in self.whole) for one in self.workers.values()]
        if serving(told, without={*leaving, name}, among=self.admitted):
            worker = self.workers[name]
            self.workers[name] = replace(worker, ready=False, stage=Stage.SERVING, heard="", whole=False)

    def check(self) -> None:
        """Something serves, and gateways know of it."""
        fine = serving(self.workers.values(), among=self.admitted)
        assert fine, "\n".join([*self.story[-12:], *map(str, self.workers.values()), str(self.admitted)])

    def run(self, until: Callable[[], bool]) -> None:
        for _ in range(BOUND):
            self.obey(self.plan())
            self.live()
            if until():
                return
        raise AssertionError("no end:\n" + "\n".join([*self.story[-12:], *map(str, self.workers.values())]))

    def over(self) -> bool:
        """The roll ended, and nothing of it is left."""
        if self.memory.phase not in (Phase.DONE, Phase.FAILED) or self.memory.version != self.target.version:
            return False
        goal = self.memory.goal
        counts = {role: sum(w.role == role for w in self.workers.values()) for role in self.target.counts}
        standing = all(worker.version == goal and worker.ready for worker in self.workers.values())
        return standing and counts == dict(self.target.counts) and not any(w.whole for w in self.workers.values())


SURGE = {PREFILL: 1, DECODE: 1, WHOLE: 1}
shapes = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.just(0)),
    st.tuples(st.just(0), st.just(0), st.integers(2, 4)),
)


ANYTHING = {
    "shape": shapes,
    "strategy": st.sampled_from(Strategy),
    "seed": st.integers(0, 2**32),
    "broken": st.sets(st.sampled_from(["v2", "v3"])),
    "bad": st.sets(st.sampled_from(["v2", "v3"])),
    "events": st.lists(
        st.sampled_from(["die", "v2", "v3", "v1", "more", "fewer", "lost", "wait", "pause"]), max_size=14
    ),
    "soak": st.sampled_from([0.0, 25.0]),
    "canary": st.sampled_from([100, 50]),
    "surge": st.sampled_from([1, 2]),
}


@settings(max_examples=300, deadline=None)
@given(**ANYTHING)
def test_a_serving_set_at_every_instant_and_an_end(**drawn: Any) -> None:
    roll_in_some_order(**drawn)


def roll_in_some_order(
    shape: tuple[int, int, int],
    strategy: Strategy,
    seed: int,
    broken: set[str],
    bad: set[str],
    events: list[str],
    soak: float,
    canary: int,
    surge: int,
) -> None:
    workers = fleet(*shape)
    counts = {role: n for role, n in zip((PREFILL, DECODE, WHOLE), shape, strict=True) if n}
    policy = Policy(
        strategy,
        surge=dict.fromkeys(SURGE, surge),
        soak=soak,
        canary=canary,
        deadline=3000.0,
        max_error_rate=0.1,
        probe=bool(seed % 2),
    )
    world = World(workers, random.Random(seed), Target("v1", counts), policy, broken=broken, bad=bad)
    world.obey(world.plan())
    world.target = replace(world.target, version="v2")
    for event in events:
        match event:
            case "die":
                world.die()
            case "v1" | "v2" | "v3":
                world.target = replace(world.target, version=event)
            case "more" | "fewer":
                change = 1 if event == "more" else -1
                least = 2 if WHOLE in counts else 1
                counts = {role: min(5, max(least, n + change)) for role, n in counts.items()}
                world.target = replace(world.target, counts=counts)
            case "lost":
                world.plan()  # the planner was killed before it acted
            case "pause":
                world.policy = replace(world.policy, paused=not world.policy.paused)
            case _:
                pass
        for _ in range(world.draw.randrange(3)):
            world.obey(world.plan())
            world.live()
    world.policy = replace(world.policy, paused=False)
    world.memory = replace(world.memory, promoted=True)

    def over() -> bool:
        if world.memory.phase is Phase.PAUSED:
            world.memory = replace(world.memory, promoted=True)
        return world.over()

    world.run(over)
    wanted = world.target.version
    if wanted in broken | bad:
        assert world.memory.failed == wanted
        assert world.memory.stable not in broken | bad
    else:
        assert world.memory.goal == wanted


PLANTS: dict[str, dict[str, Callable[..., object]]] = {
    "new_ones_need_not_stand": {
        "surge._share": lambda *_: 1.0,
        "surge._as_far_as_safe": lambda stops, seen: frozenset(one.id for one in stops),
    },
    "gateways_need_not_know": {
        "surge.serving": lambda workers, without, among: serving(workers, without),
        "in_place.serving": lambda workers, without, among: serving(workers, without),
        "step.serving": lambda workers, without, among: serving(workers, without),
    },
    "all_change_at_once": {
        "in_place._candidates": lambda old, everyone: old,
        "in_place.serving": lambda *_, **__: True,
    },
    "what_is_left_need_not_serve": {"in_place.serving": lambda *_, **__: True},
    "nobody_serves_whole_meanwhile": {"in_place.whole_workers": lambda *_: frozenset()},
    "nothing_is_rolled_back": {"step._failure": lambda *_: ""},
    "what_failed_is_not_remembered": {"step._roll_back": lambda memory, reason: replace(memory, phase=Phase.STAGING)},
    "no_gate_is_looked_at": {"step._failure": lambda policy, seen, memory: in_place.trouble(memory.goal, seen)},
    "too_many_are_told_to_end": {"step.serving": lambda *_, **__: True},
}

# A fault that few histories show: fewer workers are wanted while they change in place.
NARROWED: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "too_many_are_told_to_end": {
        "shape": st.sampled_from([(2, 2, 0), (3, 3, 0)]),
        "strategy": st.just(Strategy.IN_PLACE),
        "events": st.lists(st.sampled_from(["fewer", "wait", "v2"]), min_size=1, max_size=4),
        "broken": st.just(set()),
        "bad": st.just(set()),
        "soak": st.just(0.0),
    }
}


@pytest.mark.parametrize("plant", list(PLANTS))
def test_a_planted_fault_is_found(plant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, wrong in PLANTS[plant].items():
        module, _, function = name.partition(".")
        monkeypatch.setattr(importlib.import_module(f"baton_operator.rollout.{module}"), function, wrong)
    once = settings(max_examples=2000, deadline=None, database=None, phases=[hypothesis.Phase.generate])
    with pytest.raises(AssertionError):
        once(given(**{**ANYTHING, **NARROWED.get(plant, {})})(roll_in_some_order))()


def world_of(strategy: Strategy, prefill: int, decode: int, whole: int = 0, **policy: object) -> World:
    counts = {role: n for role, n in ((PREFILL, prefill), (DECODE, decode), (WHOLE, whole)) if n}
    limits = Policy(strategy, surge=SURGE, **policy)  # type: ignore[arg-type]
    world = World(fleet(prefill, decode, whole), random.Random(1), Target("v1", counts), limits)
    world.obey(world.plan())
    world.target = Target("v2", counts)
    return world


def test_in_place_with_one_pair_each_side_serves_whole_in_turn() -> None:
    world = world_of(Strategy.IN_PLACE, 1, 1)
    seen: list[tuple[str, ...]] = []

    def note() -> bool:
        ready = tuple(f"{w.role}{'+' if w.whole else ''} {w.version}" for w in world.workers.values() if w.ready)
        if not seen or seen[-1] != ready:
            seen.append(ready)
        return world.over()

    world.run(note)
    assert seen[0] == ("prefill v1", "decode v1")
    assert ("decode v1",) in seen
    assert ("prefill+ v2",) in seen
    assert seen[-1] == ("prefill v2", "decode v2")
    assert seen.index(("decode v1",)) < seen.index(("prefill+ v2",))


def test_in_place_takes_one_set_of_several_at_a_time() -> None:
    world = world_of(Strategy.IN_PLACE, 2, 4)
    least = 10

    def note() -> bool:
        nonlocal least
        least = min(least, sum(serving_sets(world.workers.values()).values()))
        return world.over()

    world.run(note)
    assert least == 1
    assert world.memory == replace(world.memory, phase=Phase.DONE, stable="v2")


def test_in_place_refuses_a_single_whole_worker() -> None:
    world = world_of(Strategy.IN_PLACE, 0, 0, 1)
    world.run(world.over)
    assert world.memory.failed == "v2"
    assert "use strategy: Surge" in world.memory.reason


def test_ranks_that_read_other_weights_stop_the_roll() -> None:
    world = world_of(Strategy.IN_PLACE, 2, 2)
    world.obey(world.plan())
    for name in list(world.workers):
        world.advance(name)
    one = next(iter(world.workers))
    world.workers[one] = replace(world.workers[one], digest="another")
    assert world.plan().memory.failed == "v2"
    assert "different checkpoints" in world.memory.reason


@pytest.mark.parametrize("watched", [{}, {"soak": 25.0}, {"probe": True}], ids=["at_once", "soak", "probe"])
@pytest.mark.parametrize("seed", range(20))
def test_surge_keeps_within_its_bounds_and_the_ratio(watched: dict[str, Any], seed: int) -> None:
    """Also while the first new workers are watched: none is missing meanwhile, and none that loads is given up."""
    world = world_of(Strategy.SURGE, 2, 4, **watched)
    world.draw = random.Random(seed)
    most: dict[str, int] = {PREFILL: 0, DECODE: 0}
    wanted = world.target.counts

    def note() -> bool:
        ended = {name for name, (order, _) in world.orders.items() if order is Order.STOP}
        assert not {one.id for one in world.workers.values() if one.version == "v2"} & ended
        for role in most:
            staying = [one for one in world.workers.values() if one.role == role and one.id not in ended]
            most[role] = max(most[role], len(staying))
            assert sum(one.ready for one in staying) >= wanted[role]
        assert sum(serving_sets(world.workers.values()).values()) >= 2
        return world.over()

    world.run(note)
    assert most == {PREFILL: 3, DECODE: 5}


def test_old_workers_stay_until_gateways_send_to_the_new_ones() -> None:
    world = world_of(Strategy.SURGE, 1, 1)
    for _ in range(20):
        world.obey(world.plan())
        for name in list(world.workers):
            world.advance(name)
    assert {w.version for w in world.workers.values() if w.ready} == {"v1", "v2"}
    assert "gateways do not send requests there yet" in world.story[-1]
    world.admitted = frozenset({"v1", "v2"})
    world.run(world.over)


@pytest.mark.parametrize("strategy", list(Strategy), ids=lambda strategy: str(strategy))
def test_a_canary_waits_to_be_promoted(strategy: Strategy) -> None:
    world = world_of(strategy, 2, 2, canary=50)
    world.run(lambda: world.memory.phase is Phase.PAUSED)
    planned = world.plan()
    assert planned.shares == {"v1": 50, "v2": 50}
    assert "promote" in planned.message
    for _ in range(20):
        world.obey(world.plan())
        world.live()
    assert {worker.version for worker in world.workers.values()} == {"v1", "v2"}
    world.target = replace(world.target, version="v1")  # undone: nobody has to promote what was there before
    world.run(world.over)
    world.target = replace(world.target, version="v2")
    world.run(lambda: world.memory.phase is Phase.PAUSED)
    world.memory = replace(world.memory, promoted=True)
    world.run(world.over)
    assert world.memory.goal == "v2"


@pytest.mark.parametrize("strategy", list(Strategy), ids=lambda strategy: str(strategy))
@pytest.mark.parametrize("fault", ["broken", "bad", "deadline"])
def test_what_fails_goes_back_and_stays_until_another_version_is_wanted(strategy: Strategy, fault: str) -> None:
    world = world_of(strategy, 2, 2, max_error_rate=0.1, deadline=400.0, soak=1e6 if fault == "deadline" else 0.0)
    if fault != "deadline":
        getattr(world, fault).add("v2")
    world.run(world.over)
    assert (world.memory.phase, world.memory.failed, world.memory.goal) == (Phase.FAILED, "v2", "v1")
    before = {name: worker.version for name, worker in world.workers.items()}
    for _ in range(10):
        world.obey(world.plan())
        world.live()
    assert {name: worker.version for name, worker in world.workers.items()} == before
    world.policy = replace(world.policy, soak=0.0)
    world.target = replace(world.target, version="v3")
    world.run(world.over)
    assert world.memory.goal == "v3"
