from __future__ import annotations

import pytest
import torch

from baton_kernels.kv_write import kv_write_torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_each_token_lands_in_its_place_and_nothing_else_changes(dtype: torch.dtype) -> None:
    pool = torch.zeros(5, 2, 3, 2, 4, 6).to(dtype)  # pages, heads, layers, K and V, page size, dim
    k_pages, v_pages = pool[:, :, 1, 0], pool[:, :, 1, 1]
    k, v = torch.randn(3, 2, 6), torch.randn(3, 2, 6)
    pages, offsets = torch.tensor([4, 4, 2]), torch.tensor([3, 0, 1])
    kv_write_torch(k, v, k_pages, v_pages, pages, offsets)
    expected = torch.zeros(5, 2, 3, 2, 4, 6).to(dtype)
    for token, (page, offset) in enumerate(zip(pages.tolist(), offsets.tolist(), strict=True)):
        expected[page, :, 1, 0, offset] = k[token].to(dtype)
        expected[page, :, 1, 1, offset] = v[token].to(dtype)
    assert torch.equal(pool.float(), expected.float())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_8_bit_floats_saturate(dtype: torch.dtype) -> None:
    k_pages, v_pages = torch.zeros(2, 1, 4, 2).to(dtype), torch.zeros(2, 1, 4, 2).to(dtype)
    big = torch.tensor([[[1e9, -1e9]]])
    kv_write_torch(big, -big, k_pages, v_pages, torch.tensor([1]), torch.tensor([0]))
    largest = torch.finfo(dtype).max
    assert k_pages[1, 0, 0].float().tolist() == [largest, -largest]
    assert v_pages[1, 0, 0].float().tolist() == [-largest, largest]


def test_keys_and_values_may_have_different_dimensions() -> None:
    k_pages, v_pages = torch.zeros(2, 1, 4, 6), torch.zeros(2, 1, 4, 2)
    k, v = torch.randn(1, 1, 6), torch.randn(1, 1, 2)
    kv_write_torch(k, v, k_pages, v_pages, torch.tensor([1]), torch.tensor([2]))
    assert torch.equal(k_pages[1, :, 2], k[0])
    assert torch.equal(v_pages[1, :, 2], v[0])
