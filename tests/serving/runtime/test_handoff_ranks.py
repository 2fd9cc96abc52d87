"""A rank's pool as its transfer engines register it."""

from __future__ import annotations

import pytest
import torch

from baton_serving.handoff.backends.base import PoolMemory
from baton_serving.kv.layout import KVGroup, PageShape
from baton_serving.kv.pool import KVPool
from baton_serving.runtime.handoff_ranks import pool_memory

SHAPE = PageShape(kv_heads=2, layers=3, page_size=4, k_dim=8, v_dim=8, dtype="float32")


def check(device: str) -> PoolMemory:
    pool = KVPool(SHAPE, [KVGroup((0, 1, 2))], 5, torch.device(device))
    pool.page_bytes(3).copy_(torch.arange(SHAPE.page_bytes, device=device) % 251)
    memory = pool_memory(pool)
    assert (memory.region.address, memory.region.nbytes) == (pool.base_address, 6 * SHAPE.page_bytes)
    expected = pool.page_bytes(3).cpu().numpy().tobytes()
    assert memory.read(3 * SHAPE.page_bytes + 8, 100) == expected[8:108]
    return memory


def test_a_pool_in_host_memory() -> None:
    assert not check("cpu").region.cuda


@pytest.mark.gpu
def test_a_pool_on_a_device() -> None:
    region = check("cuda:0").region
    assert (region.cuda, region.device_id) == (True, 0)
