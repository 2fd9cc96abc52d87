from __future__ import annotations

import pytest
from support.scheduler_world import small_world

from baton_serving.errors import InternalError, InvalidRequest
from baton_serving.kv.layout import KVGroup, KVLayout
from baton_serving.sampling.params import SamplingParams
from baton_serving.scheduling.config import SchedulerConfig
from baton_serving.scheduling.events import Failure
from baton_serving.scheduling.request import Request, State
from baton_serving.scheduling.scheduler import Scheduler
from baton_serving.scheduling.step import StepResult


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("policy", ["fcfs", "lpm", "lof", "random", "dfs-weight"])
def test_a_crowd_is_served_as_each_would_be_alone(policy: str, mixed: bool, depth: int) -> None:
    world = small_world(
        depth=depth, schedule_policy=policy, enable_mixed_chunk=mixed, chunked_prefill_size=8, page_size=2
    )
    for i in range(12):
        world.add(world.request([1, 2, 3, i % 3, i % 2] * 3, max_new_tokens=4 + i, priority=i % 2, eos=6))
    world.run_out()
    world.check_answers()
    assert world.scheduler.idle


def test_choices_of_one_request_share_the_prompt() -> None:
    world = small_world(page_size=2)
    for _ in range(3):
        world.add(world.request([1, 2, 3, 4, 5, 6, 0], max_new_tokens=2))
    world.run_out()
    assert [answer.last.cached_tokens for answer in world.answers.values() if answer.last] == [0, 6, 6]


@pytest.mark.parametrize(
    ("prompt", "pages", "message"),
    [
        ([], 40, "the prompt is empty"),
        ([1] * 100, 40, "the prompt has 100 tokens, but the context has room for 99 and an answer"),
        ([1] * 20, 4, "the prompt has 20 tokens, but the KV cache of this worker has room for 15 and an answer"),
    ],
)
def test_a_prompt_that_cannot_be_served_is_answered(prompt: list[int], pages: int, message: str) -> None:
    world = small_world(pages=pages)
    request = world.add(world.request(prompt))
    last = world.answers[request.rid].last
    assert last is not None
    assert last.failure is not None
    assert last.failure.code == InvalidRequest.code
    assert last.failure.param == "prompt"
    assert last.failure.message.startswith(message)
    assert world.scheduler.idle


def test_a_long_prompt_is_cut_when_that_is_allowed() -> None:
    world = small_world(context_len=10, allow_auto_truncate=True)
    request = world.add(world.request(list(range(7)) * 3, max_new_tokens=5))
    world.run_out()
    assert (request.prompt, len(request.output)) == ((list(range(7)) * 3)[-9:], 1)
    world.check_answers()


def test_a_full_queue_turns_newcomers_away() -> None:
    world = small_world(max_queued_requests=2)
    for _ in range(3):
        request = world.add(world.request([1, 2], max_new_tokens=2))
    last = world.answers[request.rid].last
    assert last is not None
    assert last.failure is not None
    assert last.failure.code == "queue_full"
    world.run_out()
    world.check_answers()


def test_ids_must_be_unique_while_in_use_and_are_free_afterwards() -> None:
    scheduler = small_world(depth=1).scheduler
    scheduler.add(Request("r", [1, 2], SamplingParams()))
    with pytest.raises(InvalidRequest, match="must be unique"):
        scheduler.add(Request("r", [1, 2], SamplingParams()))
    plan = scheduler.schedule()
    assert plan is not None
    scheduler.abort("r")
    scheduler.add(Request("r", [3, 4], SamplingParams(max_new_tokens=1)))  # the first one's step is not over yet
    after = scheduler.schedule()
    scheduler.commit(plan, StepResult(plan.step, [1]))
    with pytest.raises(InvalidRequest, match="must be unique"):
        scheduler.add(Request("r", [5, 6], SamplingParams()))
    assert after is not None
    outputs = scheduler.commit(after, StepResult(after.step, [1]))
    assert [output.finish.kind for output in outputs if output.finish] == ["length"]
    assert scheduler.idle


def test_an_abort_names_its_step_and_frees_pages_after_the_last_launched_one() -> None:
    world = small_world(depth=1)
    request = world.add(world.request([1] * 5, max_new_tokens=9))
    world.step()
    assert world.scheduler.abort(request.rid) == 1
    world.aborted.add(request.rid)
    assert request.held is not None
    assert request.state is State.LEAVING
    world.step()
    assert request.held is None
    assert world.scheduler.idle
    world.check_answers()


def test_aborts_of_waiting_unknown_and_ended_requests() -> None:
    world = small_world(max_running_requests=1)
    first, second = (world.add(world.request([token] * 5, max_new_tokens=2)) for token in (1, 2))
    world.step()
    world.abort(second.rid)
    assert second.state is State.GONE
    world.run_out()
    assert world.scheduler.abort(first.rid) == world.steps
    assert world.scheduler.abort("never seen") == world.steps
    world.check_answers()


def test_abort_all_with_a_failure_ends_everything() -> None:
    world = small_world(max_running_requests=1)
    for token in range(3):
        world.add(world.request([token] * 5, max_new_tokens=9))
    world.step()
    world.scheduler.abort_all(failure=Failure("unavailable", "the worker stops"))
    outputs = world.scheduler.take_outputs()
    assert [output.failure.code for output in outputs if output.failure] == ["unavailable"] * 3
    assert world.scheduler.idle


def test_a_stop_string_ends_the_request_where_it_was_found() -> None:
    world = small_world(depth=1)
    request = world.add(world.request([1] * 5, max_new_tokens=9))
    for _ in range(5):
        world.step()
    assert len(request.output) > 2
    world.cut[request.rid] = 2
    world.scheduler.stop_found(request.rid, 2)
    world.run_out()
    last = world.answers[request.rid].last
    assert last is not None
    assert last.completion_tokens == 2
    assert last.finish is not None
    assert last.finish.kind == "stop"


def test_a_request_begun_elsewhere_goes_on_where_it_was() -> None:
    world = small_world()
    request = world.add(world.request([1] * 5, max_new_tokens=9, resumed=4))
    world.run_out()
    world.check_answers()
    assert len(world.answers[request.rid].tokens) == 9


def test_a_request_finished_elsewhere_is_answered_at_once() -> None:
    world = small_world()
    request = world.add(world.request([1] * 5, max_new_tokens=4, resumed=4))
    assert request.state is State.GONE
    world.check_answers()


def test_at_most_one_step_ahead() -> None:
    scheduler = small_world().scheduler
    scheduler.add(Request("r", [1, 2], SamplingParams()))
    plans = [scheduler.schedule(), scheduler.schedule()]
    with pytest.raises(InternalError, match="two steps are in flight"):
        scheduler.schedule()
    assert plans[1] is not None
    with pytest.raises(InternalError, match="not the oldest"):
        scheduler.commit(plans[1], StepResult(plans[1].step, [1]))


def test_quarantine_elsewhere_makes_requests_wait_not_fail() -> None:
    world = small_world(page_size=1, pages=12)
    arriving = world.request([1] * 6, max_new_tokens=2)
    world.reserve(arriving)
    world.give_up(arriving.rid, late=True)
    request = world.add(world.request([2] * 8, max_new_tokens=2))
    for _ in range(40):
        world.step()
    assert request.state is State.WAITING
    world.run_out()
    world.check_answers()


def test_flush_leaves_only_what_is_in_use() -> None:
    world = small_world()
    world.add(world.request([1] * 8, max_new_tokens=0))
    world.run_out()
    assert world.scheduler.flush_cache() == 2
    assert world.scheduler.stats()["pages_free"] == 40


def test_check_names_a_page_list_that_no_request_holds() -> None:
    world = small_world()
    request = world.add(world.request([1] * 8, max_new_tokens=9))
    world.step()
    world.scheduler._roster.running.clear()
    world.scheduler._roster.requests.clear()
    with pytest.raises(InternalError, match=f"the page list of {request.rid} is held by no request"):
        world.scheduler.check()


def test_check_counts_slots() -> None:
    world = small_world()
    world.scheduler._roster.slots.pop()
    with pytest.raises(InternalError, match="slots do not add up"):
        world.scheduler.check()


def test_stamps_come_from_the_clock_that_was_given() -> None:
    now = iter(range(100, 200))
    layout = KVLayout(4, 1, 4, 4, "float32", (KVGroup((0,)),))
    config = SchedulerConfig(context_len=50, max_running_requests=1)
    scheduler = Scheduler(config, layout, 10, clock=lambda: float(next(now)))
    scheduler.add(Request("r", [1], SamplingParams(max_new_tokens=1), received=99.0))
    plan = scheduler.schedule()
    assert plan is not None
    (output,) = scheduler.commit(plan, StepResult(plan.step, [1]))
    stamps = output.timings
    assert stamps is not None
    assert stamps.received < stamps.queued < stamps.scheduled < stamps.prefilled < stamps.first_token < stamps.finished


def test_the_ratio_starts_again_when_nothing_runs() -> None:
    world = small_world()
    world.add(world.request([1] * 5, max_new_tokens=9))
    world.run_out()
    world.step()
    assert world.scheduler.stats()["new_token_ratio"] == pytest.approx(0.7)
