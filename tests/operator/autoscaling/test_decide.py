"""The autoscaler's rules one by one; what they come to together is in test_closed_loop.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from baton_operator.autoscaling import PERIOD, Bounds, Fleet, Memory, Targets, decide
from baton_operator.autoscaling.memory import Series
from baton_operator.planner import WorkerReport

TARGETS = Targets(ttft=2.0, tpot=0.05)
BOUNDS = {"prefill": Bounds(1, 20), "decode": Bounds(1, 20)}
TO_ZERO = {"prefill": Bounds(0, 20), "decode": Bounds(0, 20)}


class Site:
    """A divided fleet whose workers compute 1,000 prompt tokens a second and put out `answers` tokens a second in all.

    Every decode worker has 1,000 pages; a token takes 20 ms and 30 ms more when all of them are in use.
    """

    def __init__(self, prefill: int = 2, decode: int = 2, bounds: Mapping[str, Bounds] = BOUNDS) -> None:
        self.wanted = {"prefill": prefill, "decode": decode}
        self.bounds = bounds
        self.now = 0.0
        self.memory = Memory()
        self.workers: dict[str, WorkerReport] = {}
        self.waiting = 0
        self.settled = True
        self.reasons: Mapping[str, str] = {}
        self.targets = TARGETS

    def step(self, prompts: float = 0.0, answers: float = 0.0, queued: int = 0) -> dict[str, int]:
        """One period with so many tokens a second; returns the numbers that are wanted from then on."""
        self.now += PERIOD
        for role, count in self.wanted.items():
            for index in range(count):
                name = f"{role}-{index}"
                before = self.workers.get(name, WorkerReport(name, role, "ready", "w", total_pages=1000))
                self.workers[name] = self._worked(before, prompts / count, answers / count, queued // count)
        there = [one for name, one in self.workers.items() if int(name.split("-")[1]) < self.wanted[name.split("-")[0]]]
        fleet = Fleet(self.wanted, there, self.waiting, self.settled)
        decision, self.memory = decide(self.memory, fleet, self.targets, self.bounds, self.now)
        self.wanted, self.reasons = dict(decision.wanted), decision.reasons
        return self.wanted

    def steps(self, seconds: float, prompts: float = 0.0, answers: float = 0.0) -> list[dict[str, int]]:
        return [dict(self.step(prompts, answers)) for _ in range(int(seconds / PERIOD))]

    def _worked(self, before: WorkerReport, prompts: float, answers: float, queued: int) -> WorkerReport:
        if before.role == "prefill":
            tokens = min(1000.0, prompts) * PERIOD
            done = before.prompt_tokens + int(tokens)
            return replace(
                before, prompt_tokens=done, prompt_seconds=before.prompt_seconds + tokens / 1000, queued_tokens=queued
            )
        # A request holds 10 pages; `n` of them put out n / pace tokens a second.
        running = answers * 0.02 / (1 - answers * 0.03 * 10 / 1000) if answers * 0.0003 < 0.9 else 90.0
        pace = 0.02 + 0.03 * running * 10 / 1000
        return replace(
            before,
            free_pages=max(0, 1000 - int(running * 10)),
            answer_tokens=before.answer_tokens + int(answers * PERIOD),
            answer_seconds=before.answer_seconds + int(answers * PERIOD) * pace,
        )


def test_workers_are_added_at_once_for_what_arrives() -> None:
    site = Site()
    site.steps(300, prompts=900, answers=1000)
    before = site.wanted["prefill"]
    site.steps(90, prompts=4000, answers=1000)
    assert before <= 2
    assert site.wanted["prefill"] >= 4


def test_what_waits_is_caught_up_with() -> None:
    site = Site(prefill=2)
    site.steps(120, prompts=500, answers=500)
    calm = site.wanted["prefill"]
    site.step(prompts=2000, answers=500, queued=12_000)
    assert site.wanted["prefill"] > calm + 2
    assert "prefill" in site.reasons


def test_decode_follows_the_pace_that_more_requests_would_have() -> None:
    site = Site(decode=2)
    site.steps(600, prompts=500, answers=2000)
    few = site.wanted["decode"]
    site.steps(600, prompts=500, answers=9000)
    assert few <= 3
    assert site.wanted["decode"] > few


def test_workers_go_only_after_calm_and_not_for_a_dip() -> None:
    site = Site(prefill=8)
    site.steps(300, prompts=6000, answers=1000)
    high = site.wanted["prefill"]
    assert all(counts["prefill"] >= high for counts in site.steps(120, prompts=2000, answers=1000))
    assert all(counts["prefill"] >= high for counts in site.steps(300, prompts=6000, answers=1000))
    site.steps(1500, prompts=2000, answers=1000)
    assert site.wanted["prefill"] <= 4


def test_nothing_is_taken_away_while_weights_change() -> None:
    site = Site(prefill=8, decode=8)
    site.settled = False
    site.steps(2000, prompts=500, answers=200)
    assert site.wanted == {"prefill": 8, "decode": 8}
    site.settled = True
    site.step(prompts=500, answers=200)
    assert site.wanted["prefill"] < 8


def test_bounds_and_ratio_hold() -> None:
    bounds = {"prefill": Bounds(3, 6), "decode": Bounds(2, 30)}
    site = Site(prefill=3, decode=2, bounds=bounds)
    site.steps(300, prompts=20_000, answers=500)
    assert site.wanted["prefill"] == 6
    site = Site(prefill=12, decode=1, bounds={"prefill": Bounds(1, 40), "decode": Bounds(1, 40)})
    site.steps(300, prompts=11_000, answers=10)
    assert site.wanted["prefill"] <= 10 * site.wanted["decode"]
    assert site.wanted["decode"] >= 2


def test_a_role_without_bounds_is_left_alone() -> None:
    site = Site(prefill=2, decode=2, bounds={"prefill": Bounds(1, 20)})
    site.steps(600, prompts=8000, answers=9000)
    assert site.wanted["decode"] == 2
    assert site.wanted["prefill"] > 2


def test_all_go_after_idling_and_a_held_request_brings_a_pair() -> None:
    site = Site(bounds=TO_ZERO)
    site.steps(300, prompts=500, answers=500)
    seen = site.steps(TARGETS.idle + 60)
    assert seen[-1] == {"prefill": 0, "decode": 0}
    assert {"prefill": 0, "decode": 1} not in seen
    site.waiting = 2
    assert site.step() == {"prefill": 1, "decode": 1}
    assert site.reasons["decode"] == "2 requests wait and no worker is there"


def test_one_role_that_must_stay_keeps_the_other() -> None:
    site = Site(bounds={"prefill": Bounds(0, 9), "decode": Bounds(1, 9)})
    assert all(all(counts.values()) for counts in site.steps(2000))


def test_the_first_look_after_a_restart_changes_nothing() -> None:
    site = Site(prefill=8, decode=8)
    site.steps(60, prompts=900, answers=500)
    site.memory = Memory()
    assert all(counts == {"prefill": 8, "decode": 8} for counts in site.steps(200, prompts=900, answers=500))


def test_a_worker_that_started_anew_does_not_count_backwards() -> None:
    site = Site()
    site.steps(300, prompts=900, answers=1000)
    before = dict(site.wanted)
    for name, one in site.workers.items():
        site.workers[name] = replace(one, prompt_tokens=0, prompt_seconds=0.0, answer_tokens=0, answer_seconds=0.0)
    assert site.step(prompts=900, answers=1000) == before


@pytest.mark.parametrize("flip", [False, True])
def test_where_roles_may_flip_one_that_lacks_workers_takes_what_the_other_has_to_spare(flip: bool) -> None:
    site = Site(prefill=2, decode=8)
    site.targets = replace(TARGETS, flip=flip)
    site.steps(585, prompts=1500, answers=500)
    assert site.wanted == {"prefill": 2, "decode": 8}
    site.memory = site.memory.with_role("prefill", replace(site.memory.role("prefill"), lasting=Series()))
    site.memory = site.memory.with_role("decode", replace(site.memory.role("decode"), lasting=Series()))
    site.step(prompts=1500, answers=500)
    assert site.wanted == {"prefill": 2, "decode": 8}  # nobody has watched for long enough
    site.step(prompts=1500, answers=500, queued=12_000)
    assert site.wanted["prefill"] >= 5
    assert site.wanted["decode"] == (6 if flip else 8)  # it needs 5.2


def test_a_role_that_was_just_given_more_gives_none() -> None:
    site = Site(prefill=2, decode=2)
    site.targets = replace(TARGETS, flip=True)
    site.steps(300, prompts=1000, answers=9000)
    high = site.wanted["decode"]
    assert high > 2
    site.steps(60, prompts=1000, answers=100)
    site.step(prompts=1000, answers=100, queued=20_000)
    assert site.wanted["prefill"] > 2
    assert site.wanted["decode"] == high


@pytest.mark.parametrize("early", [0.0, 1.0, PERIOD / 2])
def test_looks_between_periods_change_nothing(early: float) -> None:
    site = Site()
    site.steps(300, prompts=900, answers=1000)
    fleet = Fleet(site.wanted, tuple(site.workers.values()))
    decision, memory = decide(site.memory, fleet, TARGETS, BOUNDS, site.now + early)
    assert (decision.wanted, memory) == (site.wanted, site.memory)


figures = st.integers(0, 10**9)
reports = st.builds(
    WorkerReport,
    id=st.sampled_from("abc"),
    role=st.sampled_from(["prefill", "decode", "both"]),
    state=st.sampled_from(["ready", "draining", "stalled", "starting"]),
    weights=st.just("w"),
    queued_tokens=figures,
    free_pages=figures,
    total_pages=figures,
    prompt_tokens=figures,
    prompt_seconds=st.floats(0, 1e9),
    answer_tokens=figures,
    answer_seconds=st.floats(0, 1e9),
)
looks = st.lists(st.tuples(st.lists(reports, max_size=4), st.integers(0, 5), st.booleans()), max_size=12)


def hardly_anything(free_pages: int) -> WorkerReport:
    return WorkerReport(
        *("a", "decode", "ready", "w"),
        free_pages=free_pages,
        total_pages=1,
        prompt_tokens=1,
        prompt_seconds=1.0,
        answer_tokens=1,
        answer_seconds=5e-324,
    )


@given(looks, st.booleans(), st.integers(0, 2), st.integers(3, 9))
@example([([], 0, False), ([hardly_anything(2)], 0, False)], False, 0, 3)
@example([([], 0, False), ([hardly_anything(0)], 0, False)], False, 0, 3)
def test_whatever_is_reported_bounds_hold_and_a_pair_stands(
    seen: list[tuple[list[WorkerReport], int, bool]], divided: bool, least: int, most: int
) -> None:
    roles = ("prefill", "decode") if divided else ("decode",)
    bounds = dict.fromkeys(roles, Bounds(least, most))
    memory, wanted = Memory(), dict.fromkeys(roles, max(1, least))
    for index, (workers, waiting, settled) in enumerate(seen):
        fleet = Fleet(wanted, workers, waiting, settled)
        decision, memory = decide(memory, fleet, TARGETS, bounds, (index + 1) * PERIOD)
        wanted = dict(decision.wanted)
        assert set(wanted) == set(roles)
        assert all(least <= count <= most for count in wanted.values())
        assert len({count == 0 for count in wanted.values()}) == 1
