from __future__ import annotations

import pytest
from support.scheduler_world import World, small_world

from baton_serving.errors import InternalError
from baton_serving.sampling.params import SamplingParams
from baton_serving.scheduling.events import TokenOutput
from baton_serving.scheduling.request import Request
from baton_serving.scheduling.step import StepResult


def run(world: World, request: Request, tokens: list[int]) -> list[TokenOutput]:
    """Let the device draw these tokens for the one request."""
    world.scheduler.add(request)
    outputs = []
    for token in tokens:
        plan = world.scheduler.schedule()
        assert plan is not None
        outputs += world.scheduler.commit(plan, StepResult(plan.step, [token]))
    return outputs


def test_one_output_per_token_and_the_end_with_the_last() -> None:
    world = small_world()
    request = Request("r", [1, 2], SamplingParams(max_new_tokens=9), eos_ids=frozenset({5}))
    outputs = run(world, request, [3, 4, 5])
    assert [output.token_ids for output in outputs] == [[3], [4], [5]]
    assert [output.completion_tokens for output in outputs] == [1, 2, 3]
    assert [output.finish.kind if output.finish else "" for output in outputs] == ["", "", "stop"]
    assert outputs[0].timings is not None
    assert outputs[1].timings is None
    assert outputs[2].timings is not None
    assert outputs[2].finish is not None
    assert outputs[2].finish.matched == 5


def test_a_token_drawn_after_the_end_is_dropped() -> None:
    world = small_world(depth=1)
    ideal, _ = world.ideal(world.request([1, 2], max_new_tokens=20), 0)
    end = ideal[3]
    request = world.add(world.request([1, 2], max_new_tokens=20, eos=end))
    world.run_out()
    world.check_answers()
    drawn = world.model.history(request).tokens[2:]
    assert len(drawn) == len(request.output) + 1 == ideal.index(end) + 2


def test_a_broken_row_fails_alone_and_its_kv_is_not_shared() -> None:
    world = small_world(page_size=2)
    for token in (1, 2):
        world.add(world.request([token] * 6, max_new_tokens=3))
    plan = world.scheduler.schedule()
    assert plan is not None
    result = world.model.launch(plan, frozenset({0}))
    world.flights.append((plan, result))
    world.commit()
    broken, sound = world.answers.values()
    assert broken.last is not None
    assert broken.last.failure is not None
    assert broken.last.failure.code == "internal_error"
    assert world.scheduler.stats()["pages_cached"] == 3
    world.run_out()
    assert sound.last is not None
    assert sound.last.finish is not None


def test_a_request_that_breaks_later_shares_nothing_more() -> None:
    world = small_world(page_size=2)
    world.add(world.request([1] * 6, max_new_tokens=20))
    for _ in range(6):
        world.step()
    world.step(nan=True)
    assert world.scheduler.idle
    assert world.scheduler.stats()["pages_cached"] == 3


def test_a_failed_logit_processor_is_the_callers_fault() -> None:
    world = small_world()
    world.scheduler.add(Request("r", [1, 2], SamplingParams()))
    plan = world.scheduler.schedule()
    assert plan is not None
    (output,) = world.scheduler.commit(plan, StepResult(plan.step, [-1], failed_rows=[0]))
    assert output.failure is not None
    assert (output.failure.code, output.failure.param) == ("invalid_request_error", "custom_logit_processor")


def test_results_of_another_step_are_refused() -> None:
    world = small_world()
    world.scheduler.add(Request("r", [1, 2], SamplingParams()))
    plan = world.scheduler.schedule()
    assert plan is not None
    with pytest.raises(InternalError, match="its result names step 7"):
        world.scheduler.commit(plan, StepResult(7, [1]))


def test_no_output_wanted_ends_after_the_prompt() -> None:
    world = small_world(chunked_prefill_size=4)
    request = world.add(world.request([1] * 10, max_new_tokens=0, logprob_start=0))
    world.run_out()
    answer = world.answers[request.rid]
    assert answer.tokens == []
    assert answer.prompt_logprobs == [1] * 9
    world.check_answers()


@pytest.mark.parametrize("chunk", [None, 1, 3, 4])
@pytest.mark.parametrize("start", [0, 1, 4, 5, 11])
def test_prompt_logprobs_come_whole_over_chunks_and_hits(chunk: int | None, start: int) -> None:
    world = small_world(chunked_prefill_size=chunk)
    for _ in range(2):
        request = world.add(world.request([1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6], max_new_tokens=2, logprob_start=start))
        world.run_out()
        assert world.answers[request.rid].prompt_logprobs == request.prompt[max(1, start) :]
    world.check_answers()


@pytest.mark.parametrize("chunk", [None, 1, 3, 4])
@pytest.mark.parametrize("start", [-1, 0, 5])
def test_log_probabilities_of_tokens_drawn_elsewhere_are_measured_again(chunk: int | None, start: int) -> None:
    world = small_world(chunked_prefill_size=chunk)
    prompt = [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]
    for _ in range(2):
        request = world.add(world.request(prompt, max_new_tokens=9, logprob_start=start, resumed=5, replay=True))
        drawn = list(request.output)
        world.run_out()
        answer = world.answers[request.rid]
        assert answer.prompt_logprobs == [*(prompt[max(1, start) :] if start >= 0 else []), *drawn]
        assert answer.logprobs == 4
    world.check_answers()
