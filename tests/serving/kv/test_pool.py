from __future__ import annotations

import mmap
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baton_serving.errors import ConfigError
from baton_serving.kv.layout import KVGroup, PageShape
from baton_serving.kv.pool import KVPool, memory_info, pages_for_memory, pages_for_tokens

CPU = torch.device("cpu")
SHAPE = PageShape(kv_heads=2, layers=3, page_size=4, k_dim=6, v_dim=2, dtype="float32")
GROUPS = (KVGroup((0, 2, 4)), KVGroup((1, 3), window=8))


def make_pool(shape: PageShape = SHAPE, pages: int = 5) -> KVPool:
    return KVPool(shape, GROUPS, pages, CPU)


def number(pool: KVPool) -> torch.Tensor:
    """Give every value of the pool its own number; returns the pool as one flat tensor."""
    flat = torch.cat([pool.page_bytes(page) for page in range(pool.pages + 1)]).view(torch.float32)
    values = torch.arange(len(flat), dtype=torch.float32)
    size = len(flat) // (pool.pages + 1)
    for page in range(pool.pages + 1):
        pool.page_bytes(page).view(torch.float32).copy_(values[page * size : (page + 1) * size])
    return values


def test_memory_is_zeroed_aligned_and_as_large_as_said() -> None:
    pool = make_pool()
    assert pool.size_bytes == 6 * SHAPE.page_bytes
    assert pool.base_address % mmap.PAGESIZE == 0
    assert not any(pool.page_bytes(page).any() for page in range(6))


def test_views_follow_the_layout_page_head_layer_then_k_and_v() -> None:
    pool = make_pool()
    values = number(pool)
    cell = SHAPE.page_size * (SHAPE.k_dim + SHAPE.v_dim)
    cells = values.view(6, SHAPE.kv_heads, SHAPE.layers, cell)
    for group in GROUPS:
        for slot, layer in enumerate(group.layers):
            k, v = pool.layer_kv(layer)
            k_values, v_values = torch.split(cells[:, :, slot], [24, 8], dim=-1)
            assert torch.equal(k, k_values.reshape(6, 2, 4, 6))
            assert torch.equal(v, v_values.reshape(6, 2, 4, 2))


def test_views_share_the_memory_of_the_pool() -> None:
    pool = make_pool()
    k, v = pool.layer_kv(2)
    k[3, 1, 2, 5] = 7.0
    v[3, 0, 0, 1] = 9.0
    page = pool.page_bytes(3).view(torch.float32)
    cell = 4 * 8
    assert page.nonzero().flatten().tolist() == [cell + 24 + 1, 3 * cell + cell + 2 * 6 + 5]


def test_page_addresses_count_from_the_base() -> None:
    pool = make_pool()
    assert pool.page_bytes(3).data_ptr() == pool.base_address + 3 * SHAPE.page_bytes
    assert pool.page_bytes(3).numel() == SHAPE.page_bytes


def test_latent_pages_have_keys_only() -> None:
    shape = PageShape(kv_heads=1, layers=3, page_size=4, k_dim=8, v_dim=0, dtype="bfloat16")
    k, v = make_pool(shape).layer_kv(0)
    assert k.shape == (6, 1, 4, 8)
    assert v.shape == (6, 1, 4, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_views_have_the_dtype_of_the_shape(dtype: str) -> None:
    shape = PageShape(kv_heads=1, layers=3, page_size=4, k_dim=8, v_dim=8, dtype=dtype)
    assert str(make_pool(shape).layer_kv(0)[0].dtype) == f"torch.{dtype}"


def test_copies_move_whole_pages_and_read_before_they_write() -> None:
    pool = make_pool()
    number(pool)
    before = [pool.page_bytes(page).clone() for page in range(6)]
    pool.copy_pages([(1, 2), (2, 3), (3, 1)])
    expected = [before[0], before[3], before[1], before[2], before[4], before[5]]
    assert all(torch.equal(pool.page_bytes(page), want) for page, want in enumerate(expected))
    pool.copy_pages([])
    assert torch.equal(pool.page_bytes(4), before[4])


def test_equal_pages_have_equal_hashes_and_one_bit_changes_them() -> None:
    pool = make_pool()
    number(pool)
    pool.copy_pages([(1, 2)])
    assert pool.page_hash(1) == pool.page_hash(2) != pool.page_hash(3)
    pool.page_bytes(2)[-1] ^= 1
    assert pool.page_hash(1) != pool.page_hash(2)


@given(st.integers(1, 10_000), st.integers(1, 256), st.integers(1, 6))
def test_pages_for_tokens_hold_one_request_of_that_length(tokens: int, page_size: int, groups: int) -> None:
    pages = pages_for_tokens(tokens, page_size, groups)
    assert pages % groups == 0
    assert 0 <= pages // groups * page_size - tokens < page_size


@dataclass(frozen=True)
class Memory:
    free: int
    total: int
    fraction: float
    pages: int


@pytest.mark.parametrize(
    "memory",
    [
        Memory(free=1000, total=1000, fraction=1.0, pages=9),
        Memory(free=1000, total=1000, fraction=0.9, pages=8),
        Memory(free=400, total=1000, fraction=0.9, pages=2),  # 600 bytes of weights count against the fraction
    ],
)
def test_pages_for_memory_leave_the_rest_aside_and_count_the_null_page(memory: Memory) -> None:
    assert pages_for_memory(100, memory.free, memory.total, memory.fraction) == memory.pages


@pytest.mark.parametrize(("free", "fraction"), [(100, 0.9), (300, 0.7), (0, 1.0)])
def test_no_room_for_a_page_says_which_flag_to_change(free: int, fraction: float) -> None:
    with pytest.raises(ConfigError, match="--mem-fraction-static"):
        pages_for_memory(100, free, 1000, fraction)


def test_memory_info_of_the_cpu() -> None:
    free, total = memory_info(CPU)
    assert 0 < free <= total


def test_a_stretch_of_bytes_is_read_as_it_lies() -> None:
    pool = make_pool()
    whole = number(pool).view(torch.uint8).numpy().tobytes()
    size = SHAPE.page_bytes
    assert pool.read(0, pool.size_bytes) == whole
    assert pool.read(2 * size + 4, 12) == whole[2 * size + 4 : 2 * size + 16]
    for offset, nbytes in ((-1, 4), (pool.size_bytes - 3, 4), (0, pool.size_bytes + 1)):
        with pytest.raises(ValueError, match="outside the pool"):
            pool.read(offset, nbytes)
