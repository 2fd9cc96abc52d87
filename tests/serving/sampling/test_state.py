import torch

from baton_serving.sampling.params import SamplingParams, SlotSetup
from baton_serving.sampling.state import Features, FloatColumn, IntColumn, ProcessorCall, SamplingState

STATE_ARGS = (6, 100, torch.device("cpu"))


def test_features_are_those_of_the_rows_sampled() -> None:
    state = SamplingState(*STATE_ARGS)
    state.set_up(
        [
            SlotSetup(0, SamplingParams(temperature=0.0), [], []),
            SlotSetup(1, SamplingParams(top_k=5), [], []),
            SlotSetup(2, SamplingParams(presence_penalty=1.0, temperature=0.0), [], []),
            SlotSetup(3, SamplingParams(min_new_tokens=4, temperature=0.0), [], [1, 2], [99]),
            SlotSetup(4, SamplingParams(min_new_tokens=2, temperature=0.0), [], [1, 2], [99]),
            SlotSetup(5, SamplingParams(top_k=1, top_p=0.5, logit_bias={3: 1.0}), [], []),
        ]
    )
    assert state.plan([]).features == Features.GREEDY
    assert state.plan([0, 4, state.padding_slot]).features == Features.GREEDY
    assert state.plan([0, 1]).features == Features.RANDOM | Features.TOP_K
    assert state.plan([2, 3]).features == Features.PENALTIES | Features.MIN_NEW
    assert state.plan([5]).features == Features.BIAS


def test_a_slot_taken_over_keeps_nothing_of_its_last_request() -> None:
    state = SamplingState(*STATE_ARGS)
    heavy = SamplingParams(
        frequency_penalty=1.0,
        logit_bias={5: 2.0, 6: 1.0},
        min_new_tokens=9,
        top_p=0.5,
        top_k=3,
        seed=8,
        custom_logit_processor="x",
    )
    state.set_up([SlotSetup(2, heavy, [1], [3, 3], [99])])
    assert min(state.ints[2, [IntColumn.COUNT_ROW, IntColumn.BIAS_ROW, IntColumn.STOP_ROW]].tolist()) == 1
    state.set_up([SlotSetup(2, SamplingParams(), [], [])])
    fresh = SamplingState(*STATE_ARGS)
    fresh.set_up([SlotSetup(2, SamplingParams(), [], [])])
    assert torch.equal(state.ints[2], fresh.ints[2])
    assert torch.equal(state.floats[2], fresh.floats[2])
    assert state.positions[2].item() == 0
    other = SlotSetup(3, SamplingParams(custom_logit_processor="y"), [], [])
    for each in (state, fresh):
        each.set_up([other])
        assert each.plan([2]).processors == ()
        assert each.plan([2, 3]).processors == (ProcessorCall("y", (1,), ({},)),)


def test_tables_hold_rows_only_for_the_slots_that_need_them() -> None:
    state = SamplingState(*STATE_ARGS)
    penalised, plain = SamplingParams(presence_penalty=0.5), SamplingParams()
    for _ in range(10):
        state.set_up([SlotSetup(slot, penalised if slot == 4 else plain, [], []) for slot in range(6)])
    assert state.counts.generated.shape == (2, 100)
    assert state.ints[:, IntColumn.COUNT_ROW].tolist() == [0, 0, 0, 0, 1, 0, 0]


def test_greedy_rows_have_temperature_zero_and_all_tokens() -> None:
    state = SamplingState(*STATE_ARGS)
    state.set_up([SlotSetup(0, SamplingParams(top_k=1), [], []), SlotSetup(1, SamplingParams(top_k=1 << 20), [], [])])
    assert state.floats[:2, FloatColumn.TEMPERATURE].tolist() == [0.0, 1.0]
    assert state.ints[:2, IntColumn.TOP_K].tolist() == [1, 100]
