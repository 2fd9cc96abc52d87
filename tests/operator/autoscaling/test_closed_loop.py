"""The autoscaler against simulated traffic. `benchmarks/autoscaling.py` runs longer traces beside a searched oracle."""

from __future__ import annotations

from dataclasses import replace

from support.scaled_fleet import ROLES, START_SECONDS, TARGETS, Autoscaler, Oracle, ScaledFleet, day, traffic

from baton_operator.autoscaling import Targets
from baton_serving.gateway.simulate.trace import Trace


def test_a_day_of_traffic_is_served_with_little_more_than_an_oracle_takes() -> None:
    trace = traffic(7200, day(7200, 5, 14), seed=3)
    oracle = Oracle(trace, use=0.95, fill=0.71)  # as full as the benchmark found that workers may be
    ours = ScaledFleet(trace, Autoscaler(), oracle.at(0)).run()
    assert ours.good >= 0.99
    assert ours.replica_seconds <= 1.15 * oracle.replica_seconds()
    assert max(ours.reversals(role) for role in ROLES) <= 1
    assert ours.gap == 0
    assert ours.refused == 0


def test_a_fleet_at_zero_comes_up_for_held_requests_and_goes_again() -> None:
    first, later = (traffic(240, day(240, 1, 2), seed).requests for seed in (1, 2))
    trace = Trace((*first, *(replace(request, at=request.at + 1800) for request in later)), 16)
    scaler = Autoscaler(Targets(ttft=TARGETS.ttft, tpot=TARGETS.tpot, idle=300.0), least=0)
    ours = ScaledFleet(trace, scaler, {"prefill": 1, "decode": 1}, worker_wait=2 * START_SECONDS).run()
    asleep, awake = ({at for at, count in ours.counts[role] if count == 0} for role in ROLES)
    assert asleep == awake != set()
    assert all(ours.counts[role][-1][1] >= 1 for role in ROLES)
    assert ours.refused == 0
    assert ours.gap == 0


def test_what_decode_has_to_spare_computes_the_long_prompts_that_come() -> None:
    def sizes(at: float) -> tuple[tuple[int, int], tuple[int, int]]:
        return ((300, 1500), (50, 400)) if at < 600 else ((900, 5000), (20, 200))

    trace = traffic(2400, lambda at: 8.0, seed=5, sizes=sizes)
    flipping = replace(TARGETS, flip=True)
    fleets = [
        ScaledFleet(trace, Autoscaler(targets), {"prefill": 3, "decode": 10}, flips=targets.flip)
        for targets in (TARGETS, flipping)
    ]
    without, ours = (fleet.run() for fleet in fleets)
    assert fleets[1].flipped > 0
    assert ours.good > without.good
    assert ours.replica_seconds < without.replica_seconds
    assert max(ours.reversals(role) for role in ROLES) <= 1
    assert ours.gap == 0
    assert ours.refused == 0
