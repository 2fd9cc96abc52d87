from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baton_kernels.paged_attention import (
    DECODE_ATTENTION,
    EXTEND_ATTENTION,
    AttentionSpec,
    PagedRows,
    paged_attention_reference,
)
from baton_kernels.paged_attention_torch import TorchDecodeAttention, TorchExtendAttention

CPU = torch.device("cpu")
BASE = AttentionSpec(
    q_heads=4,
    kv_heads=2,
    k_dim=8,
    v_dim=8,
    page_size=4,
    scale=0.4,
    dtype=torch.float32,
    kv_dtype=torch.float32,
    device=CPU,
)


class Case:
    """Random queries, and random KV scattered over the shuffled pages of one layer of a pool; stale values are NaN."""

    def __init__(self, spec: AttentionSpec, q_lens: tuple[int, ...], kv_lens: tuple[int, ...]) -> None:
        self.spec = spec
        layers, size = 3, spec.page_size
        widths = [math.ceil(kv_len / size) for kv_len in kv_lens]
        pages = sum(widths) + 3
        cell = size * (spec.k_dim + spec.v_dim)
        flat = torch.full((pages * spec.kv_heads * layers * cell,), math.nan)
        strides = (spec.kv_heads * layers * cell, layers * cell)
        shape = (pages, spec.kv_heads, size)
        self.k_pages = flat.as_strided((*shape, spec.k_dim), (*strides, spec.k_dim, 1), cell)
        self.v_pages = flat.as_strided((*shape, spec.v_dim), (*strides, spec.v_dim, 1), cell + size * spec.k_dim)
        order = (torch.randperm(pages - 1) + 1).tolist()
        table = torch.zeros(len(kv_lens), max(widths) + 2, dtype=torch.int32)
        for row, kv_len in enumerate(kv_lens):
            mine = [order.pop() for _ in range(widths[row])]
            first_seen = 0 if spec.window is None else max(0, kv_len - q_lens[row] - spec.window + 1)
            for index, page in enumerate(mine):
                filled = slice(0, min(size, kv_len - index * size))
                self.k_pages[page, :, filled] = torch.randn(spec.kv_heads, filled.stop, spec.k_dim)
                self.v_pages[page, :, filled] = torch.randn(spec.kv_heads, filled.stop, spec.v_dim)
                if index >= first_seen // size:  # pages that slid out of the window stay NULL_PAGE
                    table[row, index] = page
        self.q = torch.randn(sum(q_lens), spec.q_heads, spec.k_dim).to(spec.dtype)
        self.k_pages, self.v_pages = self.k_pages.to(spec.kv_dtype), self.v_pages.to(spec.kv_dtype)
        self.rows = PagedRows(q_lens, kv_lens, table)

    def expected(self) -> torch.Tensor:
        return paged_attention_reference(self.q.double(), self.k_pages, self.v_pages, self.rows, self.spec)

    def extend(self) -> torch.Tensor:
        return TorchExtendAttention(self.spec).plan(self.rows).run(self.q, self.k_pages, self.v_pages)

    def decode(self) -> torch.Tensor:
        return TorchDecodeAttention(self.spec).plan(self.rows).run(self.q, self.k_pages, self.v_pages)


def close(result: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)


def test_the_reference_is_plain_softmax_attention() -> None:
    case = Case(replace(BASE, kv_heads=4, page_size=16), (5,), (5,))
    page = int(case.rows.page_table[0, 0])
    keys, values = case.k_pages[page, :, :5].double(), case.v_pages[page, :, :5].double()
    scores = torch.einsum("qhd,hkd->hqk", case.q.double(), keys) * BASE.scale
    scores.masked_fill_(torch.ones(5, 5, dtype=torch.bool).triu(1), -math.inf)
    expected = torch.einsum("hqk,hkd->qhd", scores.softmax(-1), values)
    torch.testing.assert_close(case.expected(), expected)


VARIANTS = {
    "plain": BASE,
    "one head": replace(BASE, q_heads=1, kv_heads=1),
    "window": replace(BASE, window=6),
    "window of one": replace(BASE, window=1),
    "softcap": replace(BASE, softcap=2.0),
    "softcap and window": replace(BASE, softcap=2.0, window=5),
    "different dims": replace(BASE, k_dim=12, v_dim=6),
    "many queries per head": replace(BASE, q_heads=14),
    "page of one token": replace(BASE, page_size=1),
}


@pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize(
    ("q_lens", "kv_lens"),
    [((1,), (1,)), ((7,), (7,)), ((3, 9, 1, 5), (20, 9, 1, 33)), ((4, 4), (4, 8))],
)
def test_extend_matches_the_reference(spec: AttentionSpec, q_lens: tuple[int, ...], kv_lens: tuple[int, ...]) -> None:
    case = Case(spec, q_lens, kv_lens)
    close(case.extend(), case.expected())


@pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("kv_lens", [(1,), (4,), (5, 1, 70, 33, 34, 2, 8)])
def test_decode_matches_the_reference(spec: AttentionSpec, kv_lens: tuple[int, ...]) -> None:
    case = Case(spec, (1,) * len(kv_lens), kv_lens)
    close(case.decode(), case.expected())


@pytest.mark.parametrize("window", [None, 100, 700])
def test_extend_in_several_blocks_of_queries(window: int | None) -> None:
    case = Case(replace(BASE, window=window, page_size=16), (1030, 600), (1030, 900))
    close(case.extend(), case.expected())


def test_decode_in_several_gathers() -> None:
    spec = replace(BASE, kv_heads=2, k_dim=64, v_dim=64, page_size=16)
    lens = (900, 16, 880, 1000, 400, 17, 33, *range(801, 830))
    case = Case(spec, (1,) * len(lens), lens)
    plan = TorchDecodeAttention(spec).plan(case.rows)
    close(plan.run(case.q, case.k_pages, case.v_pages), case.expected())
    close(plan.run(case.q, case.k_pages, case.v_pages), case.expected())  # the workspace is reused by the next layer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    spec = replace(BASE, dtype=dtype, kv_dtype=dtype)
    extend, decode = Case(spec, (6, 3), (6, 21)), Case(spec, (1, 1, 1), (6, 21, 22))
    close(extend.extend(), extend.expected(), 2e-2)
    close(decode.decode(), decode.expected(), 2e-2)


@pytest.mark.parametrize("kv_dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_8_bit_pages(kv_dtype: torch.dtype) -> None:
    spec = replace(BASE, kv_dtype=kv_dtype, window=9)
    extend, decode = Case(spec, (6, 3), (6, 21)), Case(spec, (1, 1, 1), (6, 21, 22))
    close(extend.extend(), extend.expected())
    close(decode.decode(), decode.expected())


def test_a_page_table_may_be_no_wider_than_needed() -> None:
    case = Case(BASE, (1, 1), (9, 2))
    expected = case.expected()
    case.rows = replace(case.rows, page_table=case.rows.page_table[:, :3].contiguous())
    close(case.decode(), expected)


def test_the_tables_offer_torch_native() -> None:
    assert EXTEND_ATTENTION.select(CPU, torch.float32, "torch_native") is TorchExtendAttention
    assert DECODE_ATTENTION.select(CPU, torch.float32, "torch_native") is TorchDecodeAttention


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_mix_of_rows(data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 40)), min_size=1, max_size=6))
    spec = replace(
        BASE,
        page_size=data.draw(st.sampled_from([1, 2, 4, 16])),
        window=data.draw(st.none() | st.integers(1, 50)),
        kv_heads=data.draw(st.sampled_from([1, 2, 4])),
    )
    q_lens = tuple(q_len for q_len, _ in rows)
    case = Case(spec, q_lens, tuple(q_len + cached for q_len, cached in rows))
    close(case.extend(), case.expected())
    case = Case(spec, (1,) * len(rows), tuple(1 + cached for _, cached in rows))
    close(case.decode(), case.expected())
