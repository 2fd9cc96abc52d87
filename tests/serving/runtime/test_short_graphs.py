from __future__ import annotations

import torch

from baton_serving.runtime.short_graphs import ROWS, TOKENS, _Inputs, packed_inputs
from baton_serving.scheduling.step import StepPlan

PADDING = 99


def inputs_of(plan: StepPlan, tokens: int) -> _Inputs:
    return _Inputs(torch.tensor(packed_inputs(plan, tokens, PADDING)), tokens)


def test_a_step_is_packed_row_by_row_and_filled_up_by_a_row_of_its_own() -> None:
    plan = StepPlan(1, slots=[3, 4], starts=[10, 7], lengths=[2, 1], extend=[1, 0], tokens=[8, 9], sample=[1, 1])
    inputs = inputs_of(plan, 16)
    ids, positions, rows = inputs.per_token.tolist()
    assert ids == [8, 9, -1, *[0] * 13], "-1: what the row sampled last"
    assert positions == [10, 11, 7, *[0] * 13]
    assert rows == [0, 0, 1, *[ROWS] * 13]
    slots, new, altogether = inputs.per_row.tolist()
    assert slots == [3, 4, *[PADDING] * (ROWS - 1)]
    assert new == [2, 1, *[0] * (ROWS - 1)]
    assert altogether == [12, 8, *[0] * (ROWS - 1)]
    assert inputs.ends.tolist() == [1, 2, *[0] * (ROWS - 2)]


def test_the_parts_of_the_largest_step_cover_the_packed_inputs() -> None:
    tokens = TOKENS[-1]
    lengths = [tokens // ROWS] * ROWS
    plan = StepPlan(1, list(range(ROWS)), [0] * ROWS, lengths, [1] * ROWS, tokens=[5] * tokens, sample=[1] * ROWS)
    inputs = inputs_of(plan, tokens)
    parts = inputs.per_token.numel() + inputs.per_row.numel() + inputs.ends.numel()
    assert parts == inputs.packed.numel() == _Inputs.of(tokens, torch.device("cpu")).packed.numel()
    assert inputs.ends.tolist() == [n * (tokens // ROWS) - 1 for n in range(1, ROWS + 1)]
