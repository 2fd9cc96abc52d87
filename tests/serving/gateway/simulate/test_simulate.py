"""The simulation: deterministic, nothing lost, and what it says of policies is what they are for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from baton_serving.cli.main import main
from baton_serving.errors import ConfigError
from baton_serving.gateway.admission.door import DoorConfig
from baton_serving.gateway.policies import POLICIES
from baton_serving.gateway.simulate.fleet import Shape, Simulation
from baton_serving.gateway.simulate.report import Account, Objective, Outcome
from baton_serving.gateway.simulate.trace import Conversations, Trace, read_mooncake
from baton_serving.gateway.simulate.worker import Costs, Job

SMALL = Conversations(requests=150, rate=40.0, think_seconds=2.0)


def play(
    trace: Trace, policy: str = "cache_aware", shape: Shape | None = None, door: DoorConfig | None = None
) -> tuple[Outcome, list[Job]]:
    account, jobs = Account(Objective()), []

    def finished(job: Job) -> None:
        account.add(job)
        jobs.append(job)

    simulation = Simulation(trace, shape or Shape(), policy, policy, door or DoorConfig(), finished)
    simulation.run()
    for worker in (*simulation.prefills, *simulation.decodes):
        assert (worker.running, worker.queued_tokens, worker.used_tokens) == (0, 0, 0)
        assert (list(worker.waiting), worker.batch, worker.prefilling) == ([], {}, [])
    return account.outcome(policy, policy), jobs


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("prefill", [0, 2])
def test_every_request_ends_once_and_the_same_seed_gives_the_same_result(policy: str, prefill: int) -> None:
    trace = SMALL.trace(1)
    shape = Shape(prefill, 3)
    outcome, jobs = play(trace, policy, shape)
    assert sorted(job.number for job in jobs) == list(range(150))
    assert all(job.arrived <= job.first_token <= job.ended for job in jobs)
    assert all(job.decoded >= job.request.output_tokens - 1 for job in jobs)
    assert play(SMALL.trace(1), policy, shape)[0] == outcome
    assert SMALL.trace(2) != trace


def test_cache_aware_beats_round_robin_on_conversations_and_on_nothing_else() -> None:
    trace = Conversations(requests=1200, rate=80.0, think_seconds=4.0).trace(0)
    aware, _ = play(trace, "cache_aware")
    turn, _ = play(trace, "round_robin")
    assert aware.cache_hit > 1.3 * turn.cache_hit
    assert aware.ttft["p50"] < 0.7 * turn.ttft["p50"]
    assert aware.busiest_prefill_share < 0.4
    single = Conversations(requests=300, rate=80.0, turns=1, systems=100_000, think_seconds=4.0).trace(0)
    assert play(single, "cache_aware")[0].cache_hit < 0.02


def test_an_idle_worker_takes_the_time_that_its_steps_cost() -> None:
    trace = Conversations(requests=1, rate=0.01, turns=1).trace(3)
    request, costs = trace.requests[0], Costs()
    _, (job,) = play(trace, shape=Shape(1, 1, costs))
    prefill = costs.prefill_step + request.prompt_tokens * costs.prefill_token
    handover = costs.transfer + request.prompt_tokens * costs.transfer_token
    assert job.first_token - job.arrived == pytest.approx(prefill + handover)
    step = costs.decode_step + costs.decode_row + (request.prompt_tokens + 1) * costs.decode_context_token
    assert job.ended - job.first_token == pytest.approx((request.output_tokens - 1) * step, rel=0.01)


def test_a_small_cache_holds_less_and_workers_that_tell_are_believed_rightly() -> None:
    trace = Conversations(requests=800, rate=40.0, think_seconds=4.0).trace(0)
    small = Costs(kv_tokens=12_000)
    tells, _ = play(trace, shape=Shape(4, 4, small))
    plenty, _ = play(trace, shape=Shape(4, 4))
    assert tells.cache_hit < plenty.cache_hit
    guesses, guessed = play(trace, shape=Shape(4, 4, small, events=False))
    _, told = play(trace, shape=Shape(4, 4, small))
    wrong = [sum(max(0, job.believed - job.cached) for job in jobs) for jobs in (told, guessed)]
    assert wrong[0] < 0.5 * wrong[1]
    assert guesses.requests == 800


def test_the_door_bounds_what_runs_and_refuses_the_rest() -> None:
    trace = Conversations(requests=500, rate=200.0).trace(0)
    door = DoorConfig(max_running=8, max_queued=20, queue_seconds=1.0)
    outcome, jobs = play(trace, door=door)
    assert len(jobs) == 500
    assert 0 < outcome.refused < 500
    running = [sum(one.arrived <= job.arrived < one.ended for one in jobs if not one.refused) for job in jobs[::25]]
    assert max(running) <= 8 + 20


def test_a_mooncake_trace_is_read_and_bad_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"timestamp": 3000, "input_length": 1100, "output_length": 5, "hash_ids": [1, 2, 3]}\n\n'
        '{"timestamp": 1000, "input_length": 600, "output_length": 2, "hash_ids": [1, 9]}\n'
    )
    trace = read_mooncake(path, speed=2.0)
    assert [(one.at, one.blocks) for one in trace.requests] == [(0.0, (1,)), (1.0, (1, 2))]
    outcome, _ = play(trace, shape=Shape(1, 1))
    assert outcome.cache_hit == pytest.approx(512 / 1700)
    for bad in ("{", '{"timestamp": 1}', '{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": [-1]}'):
        path.write_text(bad)
        with pytest.raises(ConfigError, match="line 1"):
            read_mooncake(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_mooncake(tmp_path / "absent")


def test_the_command_prints_a_table_and_writes_json_and_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot = tmp_path / "out.json", tmp_path / "out.svg"
    words = ["simulate", "--requests", "200", "--policy", "round_robin", "cache_aware:least_load", "--json", str(out)]
    assert main([*words, "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    assert "cache_aware:least_load" in printed
    assert "TTFT ms" in printed
    told = json.loads(out.read_text())
    assert [one["prefill_policy"] for one in told] == ["round_robin", "cache_aware"]
    assert plot.read_text().startswith("<?xml")
    assert "<svg" in plot.read_text()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--policy", "best"], "no policy 'best'"),
        (["--decode", "0"], "--decode"),
        (["--prefill", "9000", "--decode", "2000"], "10000"),
        (["--rate", "0"], "--rate"),
        (["--plot", "out.gif"], ".svg"),
        (["--trace", "absent.jsonl"], "absent.jsonl"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *words]) == 2
    assert complaint in capsys.readouterr().err


def test_ten_thousand_workers_are_simulated() -> None:
    trace = Conversations(requests=300, rate=3000.0, turns=2).trace(0)
    outcome, _ = play(trace, "cache_aware", Shape(5000, 5000))
    assert outcome.refused == 0
