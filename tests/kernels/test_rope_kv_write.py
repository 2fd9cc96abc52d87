from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from baton_kernels.rope import rope_table
from baton_kernels.rope_kv_write import HeadNorm, keys_and_values, rope_kv_write_torch


def rotate(x: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
    angles = positions.double()[:, None, None] * inv_freq.double()
    low, high = x.double().chunk(2, dim=-1)
    return torch.cat((low * angles.cos() - high * angles.sin(), high * angles.cos() + low * angles.sin()), dim=-1)


@pytest.mark.parametrize("normed", [False, True])
def test_queries_come_back_rotated_and_keys_and_values_land_in_pages(normed: bool) -> None:
    tokens, q_heads, kv_heads, dim = 5, 4, 2, 8
    inv_freq = torch.tensor([1.0, 0.3, 0.1, 0.01])
    qkv = torch.randn(tokens, (q_heads + 2 * kv_heads) * dim)
    q, k, v = (x.view(tokens, -1, dim) for x in torch.split(qkv, [q_heads * dim, kv_heads * dim, kv_heads * dim], -1))
    norm = HeadNorm(torch.randn(dim), torch.randn(dim), 1e-6, 1.0) if normed else None
    exact_q, exact_k = q.double(), k.double()
    if norm is not None:
        exact_q = functional.rms_norm(exact_q, (dim,), norm.q_weight.double() + 1, norm.eps)
        exact_k = functional.rms_norm(exact_k, (dim,), norm.k_weight.double() + 1, norm.eps)
    positions = torch.tensor([3, 4, 5, 0, 30])
    exact_q, exact_k = rotate(exact_q, positions, inv_freq), rotate(exact_k, positions, inv_freq)
    exact_v = v.double().clone()
    pool = torch.zeros(4, kv_heads, 2, 2, 16, dim)
    pages, offsets = torch.tensor([1, 1, 1, 2, 3]), positions % 16
    table = rope_table(inv_freq, 32)

    result = rope_kv_write_torch(qkv, norm, positions, table, pool[:, :, 0, 0], pool[:, :, 0, 1], pages, offsets)

    torch.testing.assert_close(result.double(), exact_q, rtol=0, atol=1e-5)
    torch.testing.assert_close(pool[pages, :, 0, 0, offsets].double(), exact_k, rtol=0, atol=1e-5)
    torch.testing.assert_close(pool[pages, :, 0, 1, offsets].double(), exact_v, rtol=0, atol=1e-5)
    assert not pool[:, :, 1].any()


def test_kept_keys_are_those_in_the_pages() -> None:
    tokens, kv_heads, dim = 5, 2, 8
    qkv = torch.randn(tokens, (4 + 2 * kv_heads) * dim)
    pool = torch.zeros(4, kv_heads, 2, 2, 16, dim)
    sides = (pool[:, :, 0, 0], pool[:, :, 0, 1])
    positions, pages = torch.tensor([3, 4, 5, 0, 30]), torch.tensor([1, 1, 1, 2, 3])
    table = rope_table(torch.tensor([1.0, 0.3, 0.1, 0.01]), 32)
    rope_kv_write_torch(qkv, None, positions, table, *sides, pages, positions % 16, keep_keys=True)
    for found, side in zip(keys_and_values(qkv, *sides), sides, strict=True):
        assert torch.equal(found, side[pages, :, positions % 16])
