from __future__ import annotations

import pytest
from support.scheduler_world import World, small_world

from baton_serving.scheduling.prefill import RETRY_STEPS
from baton_serving.scheduling.step import StepPlan


def plans(world: World, count: int = 1) -> list[StepPlan]:
    """The next steps, each run and committed."""
    found = []
    for _ in range(count):
        before = world.steps
        world.step()
        if world.steps > before:
            found.append(world.last_plan)
    return found


def test_a_long_prompt_is_cut_at_page_boundaries() -> None:
    world = small_world(chunked_prefill_size=10)
    world.add(world.request([1] * 21, max_new_tokens=2))
    steps = plans(world, 3)
    assert [(plan.starts, plan.lengths, plan.sample) for plan in steps] == [
        ([0], [8], [0]),
        ([8], [8], [0]),
        ([16], [5], [1]),
    ]


def test_a_chunk_smaller_than_a_page_still_goes_on() -> None:
    world = small_world(chunked_prefill_size=3)
    world.add(world.request([1] * 7, max_new_tokens=1))
    assert [plan.lengths for plan in plans(world, 4)] == [[3], [1], [3]]


def test_without_chunks_a_prompt_over_the_budget_goes_alone() -> None:
    world = small_world(max_prefill_tokens=8)
    world.add(world.request([1] * 20, max_new_tokens=3))
    world.add(world.request([2] * 5, max_new_tokens=3))
    assert [plan.lengths for plan in plans(world, 2)] == [[20], [5]]


def test_several_short_prompts_share_a_step_up_to_the_budget() -> None:
    world = small_world(max_prefill_tokens=8)
    for token in (1, 2, 3):
        world.add(world.request([token] * 4, max_new_tokens=3))
    assert [plan.lengths for plan in plans(world, 2)] == [[4, 4], [4]]


def test_prefill_goes_before_decode_unless_mixed() -> None:
    for mixed, expected in ((False, [1]), (True, [0, 1])):
        world = small_world(enable_mixed_chunk=mixed, chunked_prefill_size=8)
        world.add(world.request([1] * 4, max_new_tokens=9))
        plans(world)
        world.add(world.request([2] * 8, max_new_tokens=9))
        assert plans(world)[0].extend == expected


def test_decode_rows_count_against_the_budget_of_a_mixed_step() -> None:
    world = small_world(enable_mixed_chunk=True, chunked_prefill_size=8, page_size=1)
    world.add(world.request([1] * 4, max_new_tokens=9))
    plans(world)
    world.add(world.request([2] * 20, max_new_tokens=9))
    assert plans(world)[0].lengths == [1, 7]


def test_a_hit_inside_a_page_is_copied_and_counted() -> None:
    world = small_world(page_size=4)
    world.add(world.request([1, 2, 3, 4, 5, 6, 0, 0], max_new_tokens=1))
    world.run_out()
    request = world.add(world.request([1, 2, 3, 4, 5, 6, 6], max_new_tokens=1))
    plan = plans(world)[0]
    assert (plan.starts, plan.tokens, len(plan.copies)) == ([6], [6], 1)
    last = world.answers[request.rid].last
    assert last is not None
    assert last.cached_tokens == 6


def test_a_prompt_that_is_cached_whole_computes_its_last_token() -> None:
    world = small_world(page_size=4)
    for _ in range(2):
        world.add(world.request([1, 2, 3, 4, 5, 6, 0, 0], max_new_tokens=1))
        plan = plans(world)[0]
    assert (plan.starts, plan.lengths) == ([7], [1])


def test_without_room_for_the_copy_the_hit_ends_at_the_page() -> None:
    world = small_world(page_size=4, pages=2)
    world.add(world.request([1, 2, 3, 4, 5, 6, 0, 0], max_new_tokens=0))
    world.run_out()
    world.add(world.request([1, 2, 3, 4, 5, 6], max_new_tokens=1))
    plan = plans(world)[0]
    assert (plan.starts, plan.copies) == ([4], [])


def test_requests_that_begin_alike_wait_for_the_first() -> None:
    world = small_world(page_size=4)
    for _ in range(3):
        world.add(world.request([1] * 12, max_new_tokens=2))
    first, second = plans(world, 2)
    assert first.lengths == [12]
    assert second.lengths == [1, 1]
    assert second.starts == [11, 11]


def test_a_request_waits_only_until_its_part_is_there() -> None:
    world = small_world(page_size=4, chunked_prefill_size=10)
    world.add(world.request([1] * 40, max_new_tokens=2))
    world.add(world.request([1] * 8 + [2], max_new_tokens=2))
    first, second = plans(world, 2)
    assert first.lengths == [8]
    assert (second.starts, second.lengths) == ([8, 8], [8, 1])


def test_a_request_does_not_wait_for_one_that_ended() -> None:
    world = small_world(page_size=4, chunked_prefill_size=4)
    first = world.add(world.request([1] * 12, max_new_tokens=2))
    world.add(world.request([1] * 12, max_new_tokens=2))
    plans(world)
    world.abort(first.rid)
    assert plans(world)[0].rows == 1
    world.run_out()
    world.check_answers()


def test_admission_keeps_pages_for_what_runs() -> None:
    world = small_world(page_size=1, pages=40, schedule_conservativeness=10.0)
    world.add(world.request([1] * 10, max_new_tokens=20))
    world.add(world.request([2] * 5, max_new_tokens=10))
    assert [plan.rows for plan in plans(world, 2)] == [1, 1]
    world.run_out()
    assert world.scheduler.stats()["retractions_total"] == 0


def test_a_request_that_lacks_pages_is_tried_again_when_some_come_back_or_after_a_while() -> None:
    world = small_world(page_size=1, pages=40, schedule_conservativeness=10.0)
    world.add(world.request([1] * 10, max_new_tokens=25))
    world.add(world.request([2] * 5, max_new_tokens=10))
    plans(world, 2)
    assert not world.scheduler._roster.pages_returned
    assert world.scheduler._prefill._retry_at <= 2 + RETRY_STEPS
    world.run_out()
    world.check_answers()


@pytest.mark.parametrize("policy", ["fcfs", "lof"])
def test_the_policy_decides_who_is_admitted(policy: str) -> None:
    world = small_world(max_running_requests=1, schedule_policy=policy)
    short = world.add(world.request([1] * 4, max_new_tokens=1))
    long = world.add(world.request([2] * 4, max_new_tokens=3))
    world.step()
    first = short if policy == "fcfs" else long
    assert world.answers[first.rid].tokens
