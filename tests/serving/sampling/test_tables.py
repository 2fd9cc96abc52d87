import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from baton_serving.sampling.tables import RowIndex, TokenCounts, TokenRows

CPU = torch.device("cpu")


class RowIndexMachine(RuleBasedStateMachine):
    """Slots take and release rows at random; nobody shares a row, row 0 stays nobody's, released rows come back."""

    def __init__(self) -> None:
        super().__init__()
        self.index = RowIndex()
        self.held: dict[int, int] = {}
        self.most = 0

    @rule(slot=st.integers(0, 9))
    def take(self, slot: int) -> None:
        row = self.index.take(slot)
        assert row == self.held.get(slot, row)
        self.held[slot] = row
        self.most = max(self.most, len(self.held))

    @rule(slot=st.integers(0, 9))
    def release(self, slot: int) -> None:
        self.index.release(slot)
        self.held.pop(slot, None)

    @invariant()
    def rows_belong_to_one_slot(self) -> None:
        rows = list(self.held.values())
        assert len(set(rows)) == len(rows)
        assert all(0 < row < self.index.height for row in rows)
        assert self.index.height == self.most + 1


TestRowIndex = RowIndexMachine.TestCase


def test_counts_start_from_prompt_and_output_and_grow() -> None:
    counts = TokenCounts(10, CPU)
    first = counts.put(3, [1, 1, 2], [5, 5])
    second = counts.put(7, [], [9])
    third = counts.put(8, [0], [])
    assert counts.prompted[first].nonzero().flatten().tolist() == [1, 2]
    assert counts.generated[first].tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 0]
    assert counts.prompted[second].any().item() is False
    counts.add(torch.tensor([first, 0, third, 0]), torch.tensor([5, 4, 1, 4]))
    assert counts.generated[first, 5].item() == 3
    assert counts.generated[third].nonzero().flatten().tolist() == [1]
    assert counts.put(3, [], []) == first
    assert counts.generated[first].sum().item() == 0
    assert not counts.prompted[first].any()


def test_rows_of_any_width_add_up_to_their_own_values() -> None:
    rows = TokenRows(CPU)
    wanted = {4: {2: 1.5}, 1: {0: -3.0, 5: 2.0, 6: 1.0}, 9: {7: 4.0, 3: -1.0}}
    at = {slot: rows.put(slot, list(bias), list(bias.values())) for slot, bias in wanted.items()}
    for slot, bias in [*wanted.items(), (None, {})]:
        row = 0 if slot is None else at[slot]
        logits = torch.zeros(8).scatter_add(0, rows.ids[row], rows.values[row])
        assert {i: v for i, v in enumerate(logits.tolist()) if v} == bias
