"""Random clients, peers and shortages against the modelled device: every answer is the ideal model's, nothing leaks."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from support.scheduler_world import VOCABULARY, World

from baton_serving.errors import InvalidRequest
from baton_serving.kv.layout import KVGroup, KVLayout
from baton_serving.scheduling.config import SchedulerConfig
from baton_serving.scheduling.policy import POLICIES
from baton_serving.scheduling.request import Request

WINDOWS = st.sampled_from([[None], [None], [None, 4], [None, 9, 9], [5], [None, 3, 11], [None, 1]])
TOKENS = st.integers(0, VOCABULARY - 1)
PICK = st.integers(0, 1 << 16)

configs = st.builds(
    SchedulerConfig,
    context_len=st.sampled_from([40, 64, 100]),
    max_running_requests=st.sampled_from([1, 2, 4, 8]),
    max_queued_requests=st.sampled_from([None, None, 3]),
    max_prefill_tokens=st.sampled_from([8, 32, 64]),
    chunked_prefill_size=st.sampled_from([None, 1, 3, 8, 16]),
    enable_mixed_chunk=st.booleans(),
    schedule_policy=st.sampled_from(POLICIES),
    schedule_conservativeness=st.sampled_from([0.01, 0.05, 1.0]),
    disable_radix_cache=st.sampled_from([False, False, False, True]),
    allow_auto_truncate=st.booleans(),
    num_reserved_decode_tokens=st.sampled_from([0, 4, 16]),
)


class SchedulerMachine(RuleBasedStateMachine):
    steps = 0  # of all worlds, planned and launched

    @initialize(
        config=configs,
        windows=WINDOWS,
        page_size=st.sampled_from([1, 2, 3, 4, 8, 16]),
        room=st.sampled_from([48, 64, 96, 300]),
        depth=st.sampled_from([0, 1]),
        stems=st.lists(st.lists(TOKENS, min_size=5, max_size=50), min_size=1, max_size=3),
    )
    def begin(
        self,
        config: SchedulerConfig,
        windows: list[int | None],
        page_size: int,
        room: int,
        depth: int,
        stems: list[list[int]],
    ) -> None:
        groups = tuple(KVGroup((i,), window) for i, window in enumerate(windows))
        layout = KVLayout(page_size, 1, 4, 4, "float32", groups)
        self.world = World(config, layout, len(groups) * (room // page_size), depth)
        self.stems = stems

    def request(self, data: st.DataObject, handoff: bool = False, long: bool = False) -> Request:
        draw = data.draw
        stem = draw(st.sampled_from(self.stems))
        prompt = stem[: draw(st.integers(1, len(stem)))] + draw(st.lists(TOKENS, max_size=5))
        return self.world.request(
            prompt,
            namespace=draw(st.sampled_from(["", "", "", "other"])),
            logprob_start=draw(st.sampled_from([None, None, None, -1, 0, 3, 30])),
            handoff=handoff,
            priority=draw(st.sampled_from([0, 0, 1])),
            resumed=draw(st.sampled_from([0, 0, 0, 3])),
            replay=draw(st.booleans()),
            eos=None if long else draw(st.sampled_from([None, 3])),
            max_new_tokens=draw(st.sampled_from([12, 20] if long else [0, 1, 2, 5, 10, 20, 30])),
            min_new_tokens=draw(st.sampled_from([0, 0, 2])),
            ignore_eos=draw(st.booleans()),
            stop_token_ids=draw(st.sampled_from([(), (), (5,)])),
        )

    @property
    def open(self) -> list[str]:
        return [rid for rid, answer in self.world.answers.items() if answer.last is None]

    @rule(data=st.data(), handoff=st.sampled_from([False, False, False, True]))
    def add(self, data: st.DataObject, handoff: bool) -> None:
        self.world.add(self.request(data, handoff))

    @rule(data=st.data(), count=st.integers(2, 8))
    def burst(self, data: st.DataObject, count: int) -> None:
        """Several that begin alike, or not at all, and then some time to get in each other's way."""
        request = self.request(data, long=True)
        alike = data.draw(st.booleans())
        for own in data.draw(st.lists(st.lists(TOKENS, max_size=3), min_size=count, max_size=count)):
            prompt = request.prompt + own if alike else [*own, *request.prompt[:6]]
            self.world.add(self.world.like(request, prompt))
        for _ in range(data.draw(st.integers(5, 40))):
            self.world.step()

    @rule(count=st.integers(1, 12))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.world.step()

    @rule()
    def break_a_row(self) -> None:
        self.world.step(nan=True)

    @precondition(lambda self: self.open)
    @rule(pick=PICK)
    def abort(self, pick: int) -> None:
        self.world.abort(self.open[pick % len(self.open)])

    @precondition(lambda self: self.open)
    @rule(pick=PICK)
    def stop_string(self, pick: int) -> None:
        self.world.stop_string(self.open[pick % len(self.open)])

    @rule()
    def flush(self) -> None:
        self.world.flush()

    @rule(data=st.data())
    def reserve(self, data: st.DataObject) -> None:
        with contextlib.suppress(InvalidRequest):  # the prompt has no room
            self.world.reserve(self.request(data))

    @precondition(lambda self: self.world.arrivals)
    @rule(pick=PICK)
    def adopt(self, pick: int) -> None:
        self.world.adopt(self.pick(self.world.arrivals, pick))

    @precondition(lambda self: self.world.arrivals)
    @rule(pick=PICK, late=st.booleans())
    def give_up(self, pick: int, late: bool) -> None:
        self.world.give_up(self.pick(self.world.arrivals, pick), late)

    @precondition(lambda self: self.world.late_writers)
    @rule(pick=PICK)
    def unquarantine(self, pick: int) -> None:
        self.world.unquarantine(self.pick(self.world.late_writers, pick))

    @precondition(lambda self: self.open)
    @rule(pick=PICK)
    def extract(self, pick: int) -> None:
        self.world.extract(self.open[pick % len(self.open)])

    @precondition(lambda self: self.world.departures)
    @rule(pick=PICK)
    def move(self, pick: int) -> None:
        self.world.move(self.pick(self.world.departures, pick))

    @precondition(lambda self: self.world.departures)
    @rule(pick=PICK)
    def resume(self, pick: int) -> None:
        self.world.resume(self.pick(self.world.departures, pick))

    @precondition(lambda self: self.world.departures)
    @rule(pick=PICK)
    def handoff_done(self, pick: int) -> None:
        self.world.handoff_done(self.pick(self.world.departures, pick))

    def pick(self, names: Mapping[str, object], pick: int) -> str:
        return list(names)[pick % len(names)]

    def teardown(self) -> None:
        if "world" in vars(self):  # the machine may end before it began
            self.world.run_out()
            self.world.check_answers()
            type(self).steps += self.world.steps


def run(machine: type[SchedulerMachine], examples: int, actions: int, derandomize: bool) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=actions,
            derandomize=derandomize,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_random_traffic() -> None:
    run(SchedulerMachine, examples=60, actions=40, derandomize=True)


@pytest.mark.deep
@pytest.mark.timeout(1800)
def test_random_traffic_for_long() -> None:
    class Counted(SchedulerMachine):
        steps = 0

    run(Counted, examples=500, actions=100, derandomize=False)
    assert Counted.steps >= 20_000
