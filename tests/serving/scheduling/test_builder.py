from __future__ import annotations

from typing import Any

from support.scheduler_world import small_world

from baton_serving.kv.layout import KVGroup, KVLayout
from baton_serving.kv.manager import KVManager
from baton_serving.sampling.params import SamplingParams
from baton_serving.scheduling.builder import Outgoing, StepBuilder
from baton_serving.scheduling.request import LogprobOptions, Request
from baton_serving.scheduling.step import LogprobRow


def make(slot: int, prompt: list[int], logprob_start: int | None = None, **params: Any) -> Request:
    kv = KVManager(KVLayout(2, 1, 4, 4, "float32", (KVGroup((0,)),)), 10)
    options = None if logprob_start is None else LogprobOptions(start=logprob_start, top=2, token_ids=(8,))
    request = Request("r", prompt, SamplingParams(**params), logprobs=options)
    request.slot = slot
    request.held = kv.open("r", "", kv.match("", b"", 0))
    kv.grow(request.held, len(prompt))
    return request


def test_columns_run_in_row_order_and_counters_move_on() -> None:
    decoding, extending = make(3, [1, 2]), make(5, [4, 5, 6])
    decoding.computed, decoding.planned = 2, 1
    builder = StepBuilder(7)
    builder.decode([decoding])
    builder.extend(extending, 2, sample=False)
    plan = builder.build(Outgoing()).plan
    assert (plan.step, plan.slots, plan.starts, plan.lengths) == (7, [3, 5], [2, 0], [1, 2])
    assert (plan.extend, plan.tokens, plan.sample) == ([0, 1], [4, 5], [1, 0])
    assert (decoding.computed, decoding.planned, decoding.last_step) == (3, 2, 7)
    assert (extending.computed, extending.planned, extending.last_step) == (2, 0, 7)


def test_prompt_logprobs_reach_over_the_end_of_a_chunk() -> None:
    request = make(0, [4, 5, 6, 7], logprob_start=0)
    first = StepBuilder(0)
    first.extend(request, 2, sample=False)
    assert first.build(Outgoing()).plan.logprobs == [LogprobRow(0, 2, 1, [8], 6)]
    last = StepBuilder(1)
    last.extend(request, 2, sample=True)
    assert last.build(Outgoing()).plan.logprobs == [LogprobRow(0, 2, 3, [8], -1)]


def test_a_row_before_the_wanted_positions_asks_for_nothing() -> None:
    request = make(0, [4, 5, 6, 7], logprob_start=3)
    builder = StepBuilder(0)
    builder.extend(request, 2, sample=False)
    assert builder.build(Outgoing()).plan.logprobs == []


def test_the_prompt_goes_out_only_for_the_repetition_penalty() -> None:
    outgoing = Outgoing()
    outgoing.set_up(make(0, [1, 2]))
    outgoing.set_up(make(1, [1, 2], repetition_penalty=1.5))
    assert [setup.prompt for setup in outgoing.setups] == [[], [1, 2]]


def test_what_was_due_for_a_freed_slot_is_forgotten() -> None:
    outgoing = Outgoing()
    for slot in (0, 1):
        outgoing.set_up(make(slot, [1, 2]))
    outgoing.forget(0)
    assert [setup.slot for setup in outgoing.setups] == [1]
    assert [write.slot for write in outgoing.page_writes] == [1]


def test_table_changes_wait_for_a_step_with_rows() -> None:
    world = small_world(page_size=2, windows=(None, 4), chunked_prefill_size=4)
    world.add(world.request([1] * 12, max_new_tokens=9))
    world.run_out()
    world.check_answers()
