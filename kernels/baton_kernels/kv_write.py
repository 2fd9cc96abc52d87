"""Write the keys and values of new tokens into a layer's part of the page pool.

Contract: `k` is `[tokens, kv_heads, k_dim]`, `v` is `[tokens, kv_heads, v_dim]`, last dimension contiguous. `k_pages`
and `v_pages` are strided views `[pages, kv_heads, page_size, dim]` of the pool, written in place: divided by `scale`,
which only pages of 8-bit floats have, and rounded to their dtype, where an 8-bit float saturates at its largest value.
Token i goes to page `pages[i]`, slot `offsets[i]` (both integer `[tokens]`). Two tokens never share a place, except in
the null page, whose content nobody reads.
"""

from __future__ import annotations

from typing import Protocol

import torch

from baton_kernels.kv_scale import UNSCALED, KVScale
from baton_kernels.registry import Implementation, Op


class KVWrite(Protocol):
    def __call__(
        self,
        k: torch.Tensor,
        v: torch.Tensor,
        k_pages: torch.Tensor,
        v_pages: torch.Tensor,
        pages: torch.Tensor,
        offsets: torch.Tensor,
        scale: KVScale = UNSCALED,
    ) -> None: ...


def kv_write_torch(
    k: torch.Tensor,
    v: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    pages: torch.Tensor,
    offsets: torch.Tensor,
    scale: KVScale = UNSCALED,
) -> None:
    for new, target, unit in ((k, k_pages, scale.k), (v, v_pages, scale.v)):
        new = new if unit == 1.0 else new.float() / unit
        if target.dtype.itemsize == 1:
            # Indexed writes know no 8-bit floats: write their bytes.
            largest = torch.finfo(target.dtype).max
            target.view(torch.uint8)[pages, :, offsets] = (
                new.clamp(-largest, largest).to(target.dtype).view(torch.uint8)
            )
        else:
            target[pages, :, offsets] = new.to(target.dtype)


KV_WRITE: Op[KVWrite] = Op("kv_write", (Implementation("torch", "baton_kernels.kv_write:kv_write_torch"),))
