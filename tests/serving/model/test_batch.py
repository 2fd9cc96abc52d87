from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from baton_serving.model.batch import ForwardBatch


def test_build_derives_positions_and_write_places() -> None:
    tables = [torch.tensor([[5, 6, 7], [8, 9, 0]], dtype=torch.int32), torch.tensor([[1, 2, 3], [4, 0, 0]])]
    batch = ForwardBatch.build([3, 0], [2, 3], torch.tensor([11, 12, 13, 14, 15]), tables, page_size=2)
    assert (batch.q_lens, batch.kv_lens, batch.tokens) == ((2, 3), (5, 3), 5)
    assert batch.positions.tolist() == [3, 4, 0, 1, 2]
    assert batch.write_offsets.tolist() == [1, 0, 0, 1, 0]
    assert [pages.tolist() for pages in batch.write_pages] == [[6, 7, 8, 8, 9], [2, 3, 4, 4, 0]]
    assert batch.logits_rows is not None
    assert batch.logits_rows.tolist() == [1, 4]
    assert batch.positions.dtype == batch.write_offsets.dtype == batch.write_pages[0].dtype == torch.int64


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), min_size=1, max_size=8), st.integers(1, 16))
def test_every_new_token_has_its_own_place_in_its_row(rows: list[tuple[int, int]], page_size: int) -> None:
    starts, lengths = [start for start, _ in rows], [length for _, length in rows]
    width = 70 // page_size + 1
    table = torch.arange(len(rows) * width).view(len(rows), width)
    batch = ForwardBatch.build(starts, lengths, torch.zeros(sum(lengths), dtype=torch.int64), [table], page_size)
    at = 0
    for row, (start, length) in enumerate(rows):
        for position in range(start, start + length):
            assert batch.positions[at] == position
            assert batch.write_pages[0][at] * page_size + batch.write_offsets[at] == row * width * page_size + position
            at += 1
    assert batch.logits_rows is not None
    assert batch.logits_rows.tolist() == [sum(lengths[: row + 1]) - 1 for row in range(len(rows))]
