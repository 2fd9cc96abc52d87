from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from baton_kernels.extend_plan import plan_items

ROWS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 300)), min_size=1, max_size=6)


@given(rows=ROWS, spare=st.integers(0, 50), window=st.sampled_from([0, 1, 70]), splits=st.integers(1, 40))
def test_every_query_meets_every_key_that_it_sees_once(
    rows: list[tuple[int, int]], spare: int, window: int, splits: int
) -> None:
    block, stretch = 8, 64
    q_lens = torch.tensor([new for new, _ in rows])
    kv_lens = torch.tensor([new + cached for new, cached in rows])
    plan = plan_items(q_lens, kv_lens, int(q_lens.sum()) + spare, block, stretch, window, splits)
    met: dict[int, set[int]] = {}
    seen_blocks: dict[int, int] = {}
    for number, (index, begin, end, alone) in enumerate(plan.items.tolist()):
        if begin == end:
            continue
        assert int(plan.ends[index]) <= number < int(plan.ends[index + 1])
        seen_blocks[index] = seen_blocks.get(index, 0) + 1
        assert bool(alone) == (int(plan.ends[index + 1] - plan.ends[index]) == 1)
        assert alone or end == begin + 1, "what is joined later is one stretch each"
        _, token, count, _ = plan.blocks[index].tolist()
        for query in range(token, token + count):
            stretches = set(range(begin, end))
            assert not met.setdefault(query, set()) & stretches
            met[query] |= stretches
    expected: dict[int, set[int]] = {}
    token = 0
    for new, cached in rows:
        for j in range(new):
            first = 0 if window == 0 else max(0, cached + j - window + 1)
            expected[token + j] = {key // stretch for key in range(first, cached + j + 1)}
        token += new
    assert met.keys() == expected.keys()
    assert all(expected[query] <= met[query] for query in met)
    assert int(plan.ends[-1]) <= max(splits, len(plan.blocks))
