"""Planning over KV groups and back ends, against the reference attention of each row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from baton_kernels.kv_scale import UNSCALED, KVScale
from baton_kernels.paged_attention import AttentionSpec, PagedAttention, PagedRows, paged_attention_reference
from baton_serving.errors import ConfigError, InternalError
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


class NewReader:
    """A back end that reads rows without earlier tokens where the model left them, and others from their pages."""

    capturable = False

    def __init__(self, spec: AttentionSpec) -> None:
        self._spec = spec
        self._rows = PagedRows((), (), torch.empty(0))
        self.reads_new = False

    def plan(self, rows: PagedRows) -> NewReader:
        self._rows, self.reads_new = rows, rows.q_lens == rows.kv_lens
        return self

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: KVScale = UNSCALED) -> torch.Tensor:
        rows, spec = self._rows, self._spec
        if not self.reads_new:
            return paged_attention_reference(q, k, v, rows, spec, scale)
        parts, start = [], 0
        for length in rows.q_lens:
            alone = PagedRows((length,), (length,), torch.zeros(1, 1, dtype=torch.int32))
            mine = slice(start, start + length)
            k_page, v_page = (side[mine].transpose(0, 1).unsqueeze(0) for side in (k, v))
            wide = replace(spec, page_size=length)
            parts.append(paged_attention_reference(q[mine], k_page, v_page, alone, wide, scale))
            start += length
        return torch.cat(parts)


@pytest.mark.parametrize(
    ("starts", "lengths"), [([0, 0], [7, 4]), ([0, 5, 0], [6, 1, 3]), ([0, 3], [6, 4]), ([5, 0], [1, 1])]
)
def test_new_tokens_are_read_where_the_model_left_them(
    starts: list[int], lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, batch = make_pool(), make_batch(starts, lengths)
    planner = AttentionPlanner(pool, HEADS)
    plain = planner.plan(batch)
    q = torch.randn(batch.tokens, 4, 8)
    spec = AttentionSpec(4, 2, 8, 8, 4, 0.3, torch.float32, torch.float32, CPU)
    expected = [plain.attend(layer, q) for layer in range(4)]
    readers: list[PagedAttention] = [NewReader(replace(spec, window=group.window)) for group in GROUPS]
    monkeypatch.setattr(planner, "_extend", readers)
    step = planner.plan(batch)
    for layer in range(4):
        pages = step.write_places(layer)[0]
        k, v = (side[pages, :, step.write_places(layer)[1]] for side in pool.layer_kv(layer))
        several = [start for start, length in zip(starts, lengths, strict=True) if length > 1]
        assert step.reads_new(layer) == (bool(several) and not any(several))
        torch.testing.assert_close(step.attend(layer, q, (k, v)), expected[layer], rtol=1e-5, atol=1e-5)
        if step.reads_new(layer):
            with pytest.raises(InternalError, match="was given none"):
                step.attend(layer, q)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_an_unknown_back_end_is_refused_with_the_known_ones(role: str) -> None:
    with pytest.raises(ConfigError, match=r"no implementation 'fa9' \(known: .*torch_native"):
        AttentionPlanner(make_pool(), HEADS, **{role: "fa9"})
