"""What the Triton kernels compute, in Triton's interpreter. `test_triton_kernels` runs this in a process of its own."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from baton_kernels import extend_attention_triton, triton_argmax, triton_sample
from baton_kernels.activation import ACTIVATIONS, activation_and_mul_torch
from baton_kernels.kv_scale import KVScale
from baton_kernels.linear8 import linear8_torch
from baton_kernels.paged_attention import AttentionSpec, PagedRows, paged_attention_reference
from baton_kernels.paged_attention_triton import TritonDecodeAttention
from baton_kernels.quantize import Rows8, quantize_rows_torch
from baton_kernels.rms_norm import add_rms_norm_torch, rms_norm_torch
from baton_kernels.rope import rope_table
from baton_kernels.rope_kv_write import HeadNorm, rope_kv_write_torch
from baton_kernels.sample import DrawRows, sample_torch
from baton_kernels.sample_draw import WEIGHT_SCALE
from baton_kernels.sample_filters import top_k_threshold, top_p_threshold
from baton_kernels.triton_activation import activation_and_mul_triton
from baton_kernels.triton_argmax import argmax_triton
from baton_kernels.triton_linear import linear_triton
from baton_kernels.triton_linear8 import linear8_cuda
from baton_kernels.triton_matmul import linear8_invariant, linear_invariant
from baton_kernels.triton_norm import add_rms_norm_triton, rms_norm_triton
from baton_kernels.triton_quantize import gate_rows8_triton, norm_rows8_triton, quantize_rows_triton
from baton_kernels.triton_reduce_norm import TritonReduceAddRmsNorm
from baton_kernels.triton_rope_kv_write import rope_kv_write_triton
from baton_kernels.triton_sample import sample_triton

SPEC = AttentionSpec(4, 2, 8, 8, 64, 0.4, torch.float32, torch.float32, torch.device("cpu"))


def test_norms() -> None:
    x, weight, residual = torch.randn(5, 48), torch.randn(48), torch.randn(5, 48)
    torch.testing.assert_close(rms_norm_triton(x, weight, 1e-6, 1.0), rms_norm_torch(x, weight, 1e-6, 1.0))
    copy = residual.clone()
    expected = add_rms_norm_torch(x, copy, weight, 1e-6)
    torch.testing.assert_close(add_rms_norm_triton(x, residual, weight, 1e-6), expected)
    torch.testing.assert_close(residual, copy)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str) -> None:
    gate_up = torch.randn(3, 2 * 1500)
    expected = activation_and_mul_torch(gate_up, activation)
    torch.testing.assert_close(activation_and_mul_triton(gate_up, activation), expected)


@pytest.mark.parametrize("programs", [2, 64])
@pytest.mark.parametrize("vocab", [7, 4096, 9001])
def test_argmax(vocab: int, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_argmax, "_MOST", programs)
    logits = torch.randn(7, vocab).round(decimals=1)  # with equal ones
    logits[1], logits[2], logits[3] = -torch.inf, 0.0, -5.0
    logits[2, ::2] = -0.0
    logits[3, vocab - 1] = -4.0
    logits[4, vocab // 2 :] = torch.inf
    logits[5, vocab // 2] = -torch.nan
    logits[5, 0] = torch.inf
    assert argmax_triton(logits).tolist() == logits.argmax(dim=-1).tolist()
    beside = torch.cat([logits, torch.full((7, 3), 100.0)], dim=1)[:, :vocab]
    assert argmax_triton(beside).tolist() == logits.argmax(dim=-1).tolist()


@pytest.mark.parametrize("outputs", [8, 37])
@pytest.mark.parametrize("rows", [1, 2])
def test_linear(rows: int, outputs: int) -> None:
    x, weight = torch.randn(rows, 6144), torch.randn(outputs, 6144)
    out = linear_triton(x, weight, None)
    torch.testing.assert_close(out.double(), x.double() @ weight.double().T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("rotary", [8, 6])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("keep_keys", [False, True])
def test_rope_kv_write(rotary: int, normed: bool, keep_keys: bool) -> None:
    tokens, q_heads, kv_heads, dim = 5, 12, 3, 8
    norm = HeadNorm(torch.randn(dim), torch.randn(dim), 1e-6, 1.0) if normed else None
    qkv = torch.randn(tokens, (q_heads + 2 * kv_heads) * dim)
    positions, pages = torch.tensor([3, 4, 5, 0, 30]), torch.tensor([1, 1, 1, 2, 3])
    table = rope_table(torch.tensor([1.0, 0.3, 0.1, 0.01])[: rotary // 2], 32)
    ours, plain = (torch.zeros(4, kv_heads, 2, 2, 16, dim) for _ in range(2))
    projected, whole = qkv.clone(), qkv.clone()
    arguments = (norm, positions, table)
    expected = rope_kv_write_torch(
        whole, *arguments, plain[:, :, 0, 0], plain[:, :, 0, 1], pages, positions % 16, keep_keys=keep_keys
    )
    out = rope_kv_write_triton(
        qkv, *arguments, ours[:, :, 0, 0], ours[:, :, 0, 1], pages, positions % 16, keep_keys=keep_keys
    )
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(ours, plain)
    rest = q_heads * dim
    torch.testing.assert_close(qkv[:, rest:], (whole if keep_keys else projected)[:, rest:])


SPECS = {
    "plain": SPEC,
    "window": replace(SPEC, window=70),
    "softcap": replace(SPEC, softcap=2.0),
    "small pages": replace(SPEC, page_size=16),
    "many queries per head": replace(SPEC, q_heads=14),
}
every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def paged(spec: AttentionSpec, kv_lens: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random pages of K and V, NaN where no row is, and the rows' table."""
    widths = [-(-kv_len // spec.page_size) for kv_len in kv_lens]
    shape = (sum(widths) + 1, spec.kv_heads, spec.page_size, spec.k_dim)
    k_pages, v_pages = torch.full(shape, math.nan), torch.full(shape, math.nan)
    order = (torch.randperm(sum(widths)) + 1).tolist()
    table = torch.zeros(len(kv_lens), max(widths), dtype=torch.int32)
    for row, kv_len in enumerate(kv_lens):
        for index in range(widths[row]):
            page = table[row, index] = order.pop()
            filled = min(spec.page_size, kv_len - index * spec.page_size)
            for side in (k_pages, v_pages):
                side[page, :, :filled] = torch.randn(spec.kv_heads, filled, spec.k_dim)
    return k_pages, v_pages, table


@every_spec
@pytest.mark.parametrize("kv_lens", [(1,), (300, 65, 64, 129, 7)])
def test_decode_attention(spec: AttentionSpec, kv_lens: tuple[int, ...]) -> None:
    k_pages, v_pages, table = paged(spec, kv_lens)
    # What the host believes of the lengths must not matter: a CUDA graph is captured with other ones.
    rows = PagedRows((1,) * len(kv_lens), (1,) * len(kv_lens), table, torch.tensor(kv_lens, dtype=torch.int32))
    q = torch.randn(len(kv_lens), spec.q_heads, spec.k_dim)
    out = TritonDecodeAttention(spec).plan(rows).run(q, k_pages, v_pages, KVScale(0.5, 3.0))
    true = replace(rows, kv_lens=kv_lens)
    exact = paged_attention_reference(q.double(), k_pages, v_pages, true, spec, KVScale(0.5, 3.0))
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)


@every_spec
@pytest.mark.parametrize(("q_lens", "kv_lens"), [((5,), (5,)), ((35, 1, 33), (200, 150, 33))], ids=["alone", "several"])
def test_extend_attention(
    spec: AttentionSpec, q_lens: tuple[int, ...], kv_lens: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extend_attention_triton, "_STRETCH", 1)
    k_pages, v_pages, table = paged(spec, kv_lens)
    lens = [torch.tensor(values, dtype=torch.int32) for values in (kv_lens, q_lens)]
    # The host knows a bound of the tokens; here too it believes something else of the rows.
    rows = PagedRows((sum(q_lens) + 9, *(0,) * (len(q_lens) - 1)), (1,) * len(q_lens), table, *lens)
    q = torch.randn(sum(q_lens), spec.q_heads, spec.k_dim)
    out = extend_attention_triton.TritonExtendAttention(spec).plan(rows).run(q, k_pages, v_pages, KVScale(0.5, 3.0))
    true = PagedRows(q_lens, kv_lens, table)
    exact = paged_attention_reference(q.double(), k_pages, v_pages, true, spec, KVScale(0.5, 3.0))
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", [SPECS["plain"], SPECS["window"]], ids=["plain", "window"])
def test_extend_attention_does_not_depend_on_how_a_row_is_cut(
    spec: AttentionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit: all at once, in chunks, one by one at the end, and beside another row."""
    monkeypatch.setattr(extend_attention_triton, "_STRETCH", 1)
    k_pages, v_pages, table = paged(spec, (230, 40))
    q = torch.randn(230, spec.q_heads, spec.k_dim)
    backend = extend_attention_triton.TritonExtendAttention(spec)
    backend._splits = 4  # too few for the whole row, enough for its chunks

    def attend(begin: int, end: int) -> torch.Tensor:
        return backend.plan(PagedRows((end - begin,), (end,), table[:1])).run(q[begin:end], k_pages, v_pages)

    whole = attend(180, 230)
    for cuts in ((180, 185, 230), (180, 228, 229, 230)):
        assert torch.equal(torch.cat([attend(a, b) for a, b in pairwise(cuts)]), whole)
    two = PagedRows((40, 50), (40, 230), table.flip(0))
    beside = torch.cat((torch.randn(40, spec.q_heads, spec.k_dim), q[180:]))
    assert torch.equal(backend.plan(two).run(beside, k_pages, v_pages)[40:], whole)


@pytest.mark.parametrize("rows", [1, 20, 70])
def test_products_by_tiles(rows: int) -> None:
    x, weight, bias = torch.randn(rows, 80), torch.randn(96, 80), torch.randn(96)
    torch.testing.assert_close(linear_invariant(x, weight, bias), x @ weight.T + bias, rtol=1e-4, atol=1e-4)


def test_rows_of_8_bit_floats() -> None:
    x, weight, residual = torch.randn(5, 48).half(), torch.randn(48).half(), torch.randn(5, 48).half()
    x[3] = 0
    same_rows(quantize_rows_triton(x), quantize_rows_torch(x))
    copy = residual.clone()
    same_rows(norm_rows8_triton(x, None, weight, 1e-6, 1.0), quantize_rows_torch(rms_norm_torch(x, weight, 1e-6, 1.0)))
    expected = quantize_rows_torch(add_rms_norm_torch(x, copy, weight, 1e-6))
    same_rows(norm_rows8_triton(x, residual, weight, 1e-6, 0.0), expected)
    torch.testing.assert_close(residual, copy)
    for activation in ACTIVATIONS:
        gate_up = torch.randn(3, 2 * 1500).half()
        same_rows(
            gate_rows8_triton(gate_up, activation), quantize_rows_torch(activation_and_mul_torch(gate_up, activation))
        )


def same_rows(found: Rows8, expected: Rows8) -> None:
    """As far as the interpreter goes, which does not round to 8 bits as hardware does."""
    torch.testing.assert_close(found.scales, expected.scales, rtol=2e-3, atol=1e-12)
    wide = [rows.values.float() * rows.scales.unsqueeze(1) for rows in (found, expected)]
    assert float((wide[0] - wide[1]).norm() / wide[1].norm()) < 0.1


@pytest.mark.parametrize("rows", [1, 3, 70])
def test_linear_with_8_bit_weights(rows: int) -> None:
    x, (weight, scale) = torch.randn(rows, 4096).half(), quantize_rows_torch(torch.randn(32, 4096))
    rows8 = quantize_rows_torch(x)
    exact = linear8_torch(rows8, weight, scale, None, torch.float32)
    out = linear8_invariant(rows8, weight, scale, None, torch.float32)
    assert float((out - exact).norm() / exact.norm()) < 1e-5
    out = linear8_cuda(x if rows == 1 else rows8, weight, scale, None, torch.float32)
    if rows == 1:  # used as it is
        exact = (x.float() @ weight.float().T) * scale
    assert float((out - exact).norm() / exact.norm()) < 1e-5


def letter_of(x: torch.Tensor) -> torch.Tensor:
    """What a rank writes to a peer for its summand: int64 `[rows, dim / 2]`."""
    return (x.view(torch.int32).long() & 0xFFFFFFFF) | (1 << 32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("turn", [0, 1])
def test_reduce_add_rms_norm(dtype: torch.dtype, turn: int) -> None:
    """Three ranks one after the other: each finds the letters of the others, those to come put there by hand."""
    ranks, rows, dim, max_rows = 3, 2, 48, 5
    boxes = torch.zeros(ranks, 2, ranks, max_rows, dim // 2, dtype=torch.int64)
    inboxes = torch.tensor([box.data_ptr() for box in boxes])
    parts = torch.randn(ranks, rows, dim).to(dtype)
    residual, weight = torch.randn(rows, dim).to(dtype), torch.randn(dim).to(dtype)
    total = (parts.float().sum(0) + residual.float()).to(dtype)
    expected = rms_norm_torch(total, weight, 1e-6, 1.0)
    for rank in range(ranks):
        for later in range(rank + 1, ranks):
            boxes[rank, turn, later, :rows] = letter_of(parts[later])
        mine = residual.clone()
        reduce = TritonReduceAddRmsNorm(inboxes, rank, max_rows)
        out = reduce(parts[rank].clone(), mine, weight, 1e-6, 1.0, turn)
        torch.testing.assert_close(mine, total)
        torch.testing.assert_close(out, expected)
        for later in range(rank + 1, ranks):
            assert torch.equal(boxes[later, turn, rank, :rows], letter_of(parts[rank])), "what the peer will read"
        assert not boxes[rank].any(), "everything that was read is cleared"
        for earlier in range(rank):
            boxes[earlier] = 0


@pytest.mark.parametrize(("vocab", "filters"), [(5000, ""), (5000, "k"), (5000, "p"), (37, "kpm"), (5000, "kpm")])
def test_sampling(vocab: int, filters: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of all kinds, some of which the filters leave alone, and ties at the borders."""
    monkeypatch.setattr(triton_sample, "_PROGRAMS", ((16, 4),))
    generator = torch.Generator().manual_seed(vocab)
    logits = (torch.randn((9, vocab), generator=generator) * 4).to(torch.bfloat16)
    logits[7] = -math.inf
    logits[8, 5] = math.inf
    rows = DrawRows(
        temperature=torch.tensor([0.0, 1.0, 0.7, 3.0, 1.0, 1.0, 40.0, 1.0, 1.0]),
        bits=torch.randint(-(1 << 62), 1 << 62, (9,), generator=generator),
        top_k=torch.tensor([3, vocab, 1, 20, 7, 30, 2, 4, 4]) if "k" in filters else None,
        top_p=torch.tensor([0.5, 1.0, 0.9, 0.3, 0.99, 0.01, 0.95, 0.5, 0.5]) if "p" in filters else None,
        min_p=torch.tensor([0.0, 0.0, 0.2, 0.0, 0.001, 0.0, 0.9, 0.0, 0.0]) if "m" in filters else None,
    )
    assert sample_triton(logits, rows).tolist() == sample_torch(logits, rows).tolist()


def test_thresholds_of_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """What top-k and top-p keep, to the token; equals at the border among it."""
    monkeypatch.setattr(triton_sample, "_PROGRAMS", ((16, 4),))
    logits = (torch.randn(6, 700) * 3).to(torch.bfloat16)  # of so few values that many are equal
    top_k, top_p = torch.tensor([1, 2, 5, 40, 300, 699]), torch.tensor([0.02, 0.3, 0.5, 0.9, 0.99, 0.999])
    search = triton_sample._Search(logits, logits.max(dim=-1).values, torch.tensor([1.0, 0.6, 1.5, 2.0, 1.0, 3.0]))
    least = torch.full((6,), triton_sample._LEAST, dtype=torch.int32)
    weights = (search.keys.view(torch.float32) * WEIGHT_SCALE).long()
    by_k = search.threshold(top_k, least)
    kept = search.keys >= by_k.unsqueeze(1)
    assert torch.equal(kept, search.keys >= top_k_threshold(search.keys, top_k).clamp(min=least[0]).unsqueeze(1))
    by_p = search.threshold(top_p, by_k)
    expected = top_p_threshold(search.keys, weights * kept, top_p)
    assert torch.equal(search.keys >= by_p.unsqueeze(1), kept & (search.keys >= expected.unsqueeze(1)))
