from __future__ import annotations

import pytest
from support.scheduler_world import small_world

from baton_serving.errors import InvalidRequest, NotFound
from baton_serving.kv.layout import NULL_PAGE
from baton_serving.sampling.params import SamplingParams
from baton_serving.scheduling.events import ChunkReady, Snapshot
from baton_serving.scheduling.request import Request, State


@pytest.mark.parametrize("depth", [0, 1])
def test_the_prefill_leg_announces_chunks_then_stands_still(depth: int) -> None:
    world = small_world(chunked_prefill_size=8, depth=depth, page_size=4)
    world.scheduler.add(Request("r", [1] * 18, SamplingParams(max_new_tokens=9), handoff=True))
    events = []
    for _ in range(6):
        plan = world.scheduler.schedule()
        if plan is not None:
            world.flights.append((plan, world.model.launch(plan)))
        if world.flights and (len(world.flights) > depth or plan is None):
            step, result = world.flights.popleft()
            assert world.scheduler.commit(step, result) == []
            world.model.committed(step.step)
        events += world.scheduler.take_handoffs()
    chunks, snapshot = events[:-1], events[-1]
    assert [(c.first, [len(p) for p in c.pages], c.tokens, c.last) for c in chunks if isinstance(c, ChunkReady)] == [
        ([0], [2], 8, False),
        ([2], [2], 16, False),
        ([4], [1], 18, True),
    ]
    assert isinstance(snapshot, Snapshot)
    assert (snapshot.kv_tokens, snapshot.unsent, len(snapshot.output_ids)) == (18, 1, 1)
    assert world.scheduler.stats()["pages_in_use"] == 1
    assert len(world.scheduler._roster.slots) == 4
    assert world.scheduler.handoff_done("r")
    (output,) = world.scheduler.take_outputs()
    assert output.finish is not None
    assert output.finish.kind == "handoff"
    assert world.scheduler.idle
    assert not world.scheduler.handoff_done("r")


def test_an_aborted_sender_keeps_announced_pages_until_the_peer_is_done() -> None:
    world = small_world(chunked_prefill_size=4, page_size=4)
    request = world.add(world.request([1] * 12, max_new_tokens=9, handoff=True))
    world.step()
    world.abort(request.rid)
    assert world.answers[request.rid].last is not None
    assert request.held is not None
    assert not world.scheduler.idle
    world.handoff_done(request.rid)
    assert request.held is None
    assert world.scheduler.idle


def test_a_sender_is_not_retracted_once_it_has_announced_pages() -> None:
    world = small_world(chunked_prefill_size=4, page_size=1, pages=24, schedule_conservativeness=0.01)
    running = world.add(world.request([1, 1], max_new_tokens=18))
    world.step()
    sender = world.add(world.request([2] * 8, max_new_tokens=1, handoff=True))
    world.step()
    assert sender.pinned_by_peer
    for _ in range(20):
        world.step()
    assert sender.state is State.HANDING_OFF
    world.handoff_done(sender.rid)
    world.run_out()
    assert running.retracted
    world.check_answers()


def test_pages_that_a_peer_reads_are_out_of_reach_of_retraction() -> None:
    world = small_world(chunked_prefill_size=4)
    sender = world.add(world.request([2] * 8, max_new_tokens=1, handoff=True))
    world.step()
    assert sender.state is State.PREFILL
    assert not world.scheduler._roster.retract_for(100)
    assert not world.scheduler._roster.retract_one()


def test_window_groups_announce_their_last_window_alone() -> None:
    world = small_world(windows=(None, 5), page_size=2, chunked_prefill_size=4)
    world.scheduler.add(Request("r", [1] * 12, SamplingParams(max_new_tokens=9), handoff=True))
    announced: dict[int, list[int]] = {0: [], 1: []}
    for _ in range(3):
        plan = world.scheduler.schedule()
        assert plan is not None
        world.scheduler.commit(plan, world.model.launch(plan))
        for event in world.scheduler.take_handoffs():
            if isinstance(event, ChunkReady):
                for group, (first, pages) in enumerate(zip(event.first, event.pages, strict=True)):
                    announced[group] += range(first, first + len(pages))
    assert announced == {0: [0, 1, 2, 3, 4, 5], 1: [4, 5]}  # a query at 12 sees 8 … 12


def test_a_reservation_leaves_out_the_prefix_that_is_here() -> None:
    world = small_world(page_size=4)
    world.add(world.request([1] * 8, max_new_tokens=0))
    world.run_out()
    reservation = world.scheduler.reserve(Request("r", [1] * 8 + [2] * 3, SamplingParams()))
    assert reservation is not None
    assert (reservation.prefix_tokens, reservation.first, len(reservation.pages[0])) == (8, [2], 1)


def test_a_reservation_asks_for_the_last_window_alone() -> None:
    world = small_world(windows=(None, 5), page_size=2)
    reservation = world.scheduler.reserve(Request("r", [1] * 12, SamplingParams()))
    assert reservation is not None
    assert reservation.first == [0, 4]
    assert [len(pages) for pages in reservation.pages] == [6, 2]
    assert NULL_PAGE not in reservation.pages[1]


def test_a_reservation_holds_no_window_pages_of_its_prefix_that_decoding_does_not_read() -> None:
    world = small_world(windows=(None, 5), page_size=2)
    world.add(world.request([1] * 8, max_new_tokens=0))
    world.run_out()
    request = Request("r", [1] * 8 + [2] * 8, SamplingParams())
    reservation = world.scheduler.reserve(request)
    assert reservation is not None
    assert (reservation.prefix_tokens, reservation.first) == (8, [4, 6])
    assert request.page_list.pages[1][:6] == [NULL_PAGE] * 6
    assert not request.page_list.window_nodes


def test_a_reservation_needs_a_slot_pages_and_room_to_decode() -> None:
    world = small_world(page_size=1, pages=30, max_running_requests=2, num_reserved_decode_tokens=5)
    assert world.reserve(world.request([1] * 8, max_new_tokens=9))
    assert not world.reserve(world.request([2] * 13, max_new_tokens=9))  # 5 + 5 of the 22 free pages are spoken for
    assert world.reserve(world.request([2] * 12, max_new_tokens=9))
    assert not world.reserve(world.request([3], max_new_tokens=1))  # no slot
    world.run_out()
    world.check_answers()


def test_a_prompt_that_never_fits_is_refused() -> None:
    world = small_world(page_size=1, pages=10)
    with pytest.raises(InvalidRequest, match="room for 9"):
        world.scheduler.reserve(Request("r", [1] * 10, SamplingParams()))


def test_first_tokens_of_an_adopted_request_are_reported_here() -> None:
    world = small_world()
    request = world.request([1] * 5, max_new_tokens=4)
    world.reserve(request)
    world.adopt(request.rid)
    assert len(world.answers[request.rid].tokens) == 1
    world.run_out()
    world.check_answers()


def test_an_adopted_request_may_be_over_already() -> None:
    world = small_world()
    request = world.request([1] * 5, max_new_tokens=1)
    world.reserve(request)
    world.adopt(request.rid)
    assert request.state is State.GONE
    assert world.steps == 0
    world.check_answers()


def test_adopting_an_aborted_request_frees_it() -> None:
    world = small_world()
    request = world.request([1] * 5, max_new_tokens=4)
    world.reserve(request)
    world.abort(request.rid)
    assert request.held is not None
    world.adopt(request.rid)
    assert request.held is None
    assert world.scheduler.idle


def test_adopting_more_than_was_reserved_is_refused() -> None:
    world = small_world(page_size=2)
    world.scheduler.reserve(Request("r", [1] * 4, SamplingParams()))
    with pytest.raises(InvalidRequest, match="reserved 4 tokens and brings 5"):
        world.scheduler.adopt("r", [1, 2], unsent=2, logprobs=[])
    with pytest.raises(InvalidRequest, match="brings no first token"):
        world.scheduler.adopt("r", [], unsent=0, logprobs=[])


def test_a_late_writer_keeps_its_pages_in_quarantine() -> None:
    world = small_world(page_size=1, pages=10)
    request = world.request([1] * 4, max_new_tokens=4)
    world.reserve(request)
    world.give_up(request.rid, late=True)
    stats = world.scheduler.stats()
    assert (stats["pages_quarantined"], stats["pages_free"]) == (4, 6)
    assert world.scheduler.idle
    world.run_out()
    assert world.scheduler.stats()["pages_free"] == 10
    with pytest.raises(NotFound, match="nothing is quarantined"):
        world.scheduler.unquarantine("r#1")


def test_a_reservation_that_was_given_up_may_be_computed_here() -> None:
    world = small_world()
    request = world.request([1] * 4, max_new_tokens=4)
    world.reserve(request)
    world.give_up(request.rid, late=True)
    again = world.request([1] * 4, max_new_tokens=4)
    again.rid = request.rid
    world.add(again)
    world.run_out()
    world.check_answers()


def test_retraction_never_takes_reserved_pages() -> None:
    world = small_world(page_size=1, pages=16, num_reserved_decode_tokens=0)
    running = world.add(world.request([1] * 2, max_new_tokens=13))
    world.step()
    arriving = world.request([2] * 8, max_new_tokens=2)
    assert world.reserve(arriving)
    for _ in range(12):
        world.step()
    assert running.retracted
    assert arriving.state is State.RESERVED
    world.run_out()
    world.check_answers()


@pytest.mark.parametrize("depth", [0, 1])
def test_a_running_request_moves_between_two_steps(depth: int) -> None:
    world = small_world(depth=depth, page_size=2)
    request = world.add(world.request([1] * 5, max_new_tokens=12))
    for _ in range(4):
        world.step()
    world.extract(request.rid)
    while world.flights:
        world.commit()
    assert request.state is State.HANDING_OFF
    assert world.move(request.rid)
    world.handoff_done(request.rid)
    world.run_out()
    world.check_answers()


def test_a_request_that_nobody_took_goes_on_here() -> None:
    world = small_world()
    request = world.add(world.request([1] * 5, max_new_tokens=6, handoff=True, logprob_start=0))
    world.step()
    assert world.answers[request.rid].tokens == []
    world.resume(request.rid)
    world.run_out()
    world.check_answers()
    assert len(world.answers[request.rid].tokens) == 6


def test_unknown_and_mistaken_names_are_refused() -> None:
    world = small_world()
    request = world.add(world.request([1] * 5, max_new_tokens=6))
    with pytest.raises(NotFound, match="no request other is here"):
        world.scheduler.extract("other")
    with pytest.raises(InvalidRequest, match="is waiting, not decode"):
        world.scheduler.extract(request.rid)
    with pytest.raises(InvalidRequest, match="is waiting, not reserved"):
        world.scheduler.adopt(request.rid, [1], unsent=1, logprobs=[])
    assert not world.scheduler.handoff_done("other")
