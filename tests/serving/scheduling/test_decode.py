from __future__ import annotations

import pytest
from support.scheduler_world import World, small_world

from baton_serving.scheduling.request import State


def states(world: World) -> list[State]:
    return [answer.request.state for answer in world.answers.values()]


@pytest.mark.parametrize("depth", [0, 1])
def test_retracted_requests_lose_and_repeat_nothing(depth: int) -> None:
    world = small_world(page_size=4, pages=12, depth=depth, schedule_conservativeness=0.01)
    for token in range(4):
        world.add(world.request([token] * 5, max_new_tokens=20))
    world.run_out()
    world.check_answers()
    assert world.scheduler.stats()["retractions_total"] > 0
    assert [answer.request.planned for answer in world.answers.values()] == [20] * 4


def test_the_one_with_least_output_gives_way_and_comes_back_first() -> None:
    world = small_world(page_size=1, pages=20, schedule_conservativeness=0.01, max_running_requests=2)
    old = world.add(world.request([1, 1], max_new_tokens=12))
    for _ in range(3):
        world.step()
    young = world.add(world.request([2, 2], max_new_tokens=12))
    waiting = world.add(world.request([3, 3], max_new_tokens=2))
    while not world.scheduler.stats()["retractions_total"]:
        world.step()
    assert (old.state, young.state, waiting.state) == (State.DECODE, State.WAITING, State.WAITING)
    assert next(iter(world.scheduler._roster.queue)) is young
    world.run_out()
    world.check_answers()


def test_low_priority_gives_way_first() -> None:
    world = small_world(page_size=1, pages=20, schedule_conservativeness=0.01, max_running_requests=2)
    low = world.add(world.request([1, 1], max_new_tokens=12))
    for _ in range(3):
        world.step()
    high = world.add(world.request([2, 2], max_new_tokens=12, priority=1))
    while not world.scheduler.stats()["retractions_total"]:
        world.step()
    assert (high.state, low.state) == (State.DECODE, State.WAITING)


def test_in_flight_victims_keep_their_pages_until_their_step_is_over() -> None:
    world = small_world(page_size=1, pages=12, depth=1, schedule_conservativeness=0.01)
    for token in range(2):
        world.add(world.request([token] * 2, max_new_tokens=8))
    while State.RETRACTING not in states(world):
        assert State.LEAVING not in states(world)
        plan = world.scheduler.schedule()
        if State.RETRACTING in states(world):
            victim = next(a.request for a in world.answers.values() if a.request.state is State.RETRACTING)
            assert victim.held is not None
            assert victim.last_step > world.scheduler._roster.committed
            break
        assert plan is not None
        world.flights.append((plan, world.model.launch(plan)))
        if len(world.flights) > 1:
            world.commit()


def test_nobody_gives_way_while_pages_are_about_to_come_back() -> None:
    world = small_world(depth=1)
    leaving, running = (world.add(world.request([token] * 4, max_new_tokens=8)) for token in (1, 2))
    world.step()
    world.abort(leaving.rid)
    assert not world.scheduler._roster.retract_for(100)
    world.commit()
    assert world.scheduler._roster.retract_for(100)
    assert running.state is State.WAITING
    world.run_out()
    world.check_answers()


def test_a_prompt_that_cannot_go_on_lets_its_pages_go() -> None:
    world = small_world(
        page_size=1, pages=20, chunked_prefill_size=2, enable_mixed_chunk=True, schedule_conservativeness=0.01
    )
    moving = world.add(world.request([1] * 2, max_new_tokens=14))
    world.step()
    stuck = world.add(world.request([2] * 12, max_new_tokens=1))
    while world.scheduler.stats()["pages_free"]:
        world.step()
    assert stuck.state is State.PREFILL
    world.extract(moving.rid)
    world.step()
    assert stuck in list(world.scheduler._roster.queue)
    world.handoff_done(moving.rid)
    world.run_out()
    world.check_answers()


def test_nothing_is_planned_past_the_limit() -> None:
    world = small_world(depth=1)
    request = world.add(world.request([1] * 4, max_new_tokens=3))
    world.run_out()
    assert request.planned == len(request.output) == 3
    assert world.steps == 3


def test_the_context_is_a_limit_too() -> None:
    world = small_world(context_len=10)
    request = world.add(world.request([1] * 7, max_new_tokens=50))
    world.run_out()
    assert len(request.output) == 3
    world.check_answers()


def test_the_pool_is_a_limit_too() -> None:
    world = small_world(page_size=2, pages=5)
    request = world.add(world.request([1] * 7, max_new_tokens=50))
    world.run_out()
    assert len(request.output) == 3


def test_joining_requests_with_a_slot_pass_one_without() -> None:
    world = small_world(max_running_requests=2)
    moving = world.add(world.request([1] * 4, max_new_tokens=9))
    world.step()
    world.extract(moving.rid)
    arriving = [world.request([token] * 4, max_new_tokens=4) for token in (2, 3)]
    for request in arriving:
        assert world.reserve(request)
    world.resume(moving.rid)
    for request in arriving:
        world.adopt(request.rid)
    world.step()
    assert [request.state for request in (moving, *arriving)] == [State.JOINING, State.DECODE, State.DECODE]
    world.run_out()
    world.check_answers()


@pytest.mark.parametrize("depth", [0, 1])
def test_window_pages_are_let_go_while_decoding(depth: int) -> None:
    world = small_world(page_size=2, windows=(None, 4), pages=60, depth=depth, disable_radix_cache=True)
    request = world.add(world.request([1] * 4, max_new_tokens=30))
    most = 0
    while not request.ended:
        world.step()
        if request.held is not None:
            most = max(most, len([page for page in request.held.pages[1] if page]))
    assert most <= 4
    world.run_out()
    world.check_answers()
