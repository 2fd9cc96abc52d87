"""Planning over KV groups and back ends, against the reference attention of each row."""

from __future__ import annotations

import pytest
import torch

from baton_kernels.paged_attention import AttentionSpec, PagedRows, paged_attention_reference
from baton_serving.errors import ConfigError
from baton_serving.kv.layout import KVGroup, PageShape
from baton_serving.kv.pool import KVPool
from baton_serving.model.attention import AttentionHeads, AttentionPlanner
from baton_serving.model.batch import ForwardBatch

CPU = torch.device("cpu")
HEADS = AttentionHeads(q_heads=4, scale=0.3, softcap=None, dtype=torch.float32)
GROUPS = (KVGroup((0, 3)), KVGroup((1, 2), window=5))


def make_pool() -> KVPool:
    pool = KVPool(PageShape(2, 2, 4, 8, 8, "float32"), GROUPS, 40, CPU)
    for page in range(41):
        pool.page_bytes(page).view(torch.float32).normal_()
    return pool


def make_batch(starts: list[int], lengths: list[int]) -> ForwardBatch:
    order = torch.randperm(40) + 1
    tables = [order[:20].view(-1, 5)[: len(starts)], order[20:].view(-1, 5)[: len(starts)]]
    return ForwardBatch.build(starts, lengths, torch.zeros(sum(lengths), dtype=torch.int64), tables, 4)


@pytest.mark.parametrize(
    ("starts", "lengths"),
    [([0, 3], [7, 4]), ([5, 0, 11], [1, 1, 1]), ([5, 2, 9, 0], [1, 6, 1, 3]), ([4, 17], [9, 1])],
)
def test_rows_of_every_kind_attend_to_their_own_pages(starts: list[int], lengths: list[int]) -> None:
    pool, batch = make_pool(), make_batch(starts, lengths)
    step = AttentionPlanner(pool, HEADS).plan(batch)
    q = torch.randn(batch.tokens, 4, 8)
    for layer in range(4):
        group = 0 if layer in GROUPS[0].layers else 1
        spec = AttentionSpec(
            4, 2, 8, 8, 4, 0.3, torch.float32, torch.float32, CPU, window=GROUPS[group].window, softcap=None
        )
        rows = PagedRows(batch.q_lens, batch.kv_lens, batch.page_tables[group])
        expected = paged_attention_reference(q.double(), *pool.layer_kv(layer), rows, spec)
        torch.testing.assert_close(step.attend(layer, q).double(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(step.write_places(layer)[0], batch.write_pages[group])
        assert step.pages(layer)[0].data_ptr() == pool.layer_kv(layer)[0].data_ptr()


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_an_unknown_back_end_is_refused_with_the_known_ones(role: str) -> None:
    with pytest.raises(ConfigError, match=r"no implementation 'fa9' \(known: .*torch_native"):
        AttentionPlanner(make_pool(), HEADS, **{role: "fa9"})
