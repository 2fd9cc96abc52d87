"""From a fused QKV projection to rotated queries and written pages: q/k norm, RoPE and KV write as one op.

Contract: `qkv` is `[tokens, (q_heads + kv_heads) * k_dim + kv_heads * v_dim]`, contiguous rows, queries first, then
keys, then values; it may be overwritten. The result is the queries `[tokens, q_heads, k_dim]` in qkv's dtype, possibly
a view of `qkv`; with `keep_keys`, `qkv` holds the rotated keys as well, for `keys_and_values`. `q_norm` and `k_norm`
are RMSNorm weights `[k_dim]` over each head, or both None. `positions` and `table` are as in `rope`, pages and `scale`
as in `kv_write`; `kv_heads`, `k_dim` and `v_dim` come from the pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from baton_kernels.kv_scale import UNSCALED, KVScale
from baton_kernels.kv_write import kv_write_torch
from baton_kernels.registry import TRITON_TYPES, Implementation, Needs, Op
from baton_kernels.rms_norm import rms_norm_torch
from baton_kernels.rope import rotate_heads


@dataclass(frozen=True)
class HeadNorm:
    """RMSNorm over each query and key head; see `rms_norm` for `eps` and `offset`."""

    q_weight: torch.Tensor
    k_weight: torch.Tensor
    eps: float
    offset: float = 0.0


class RopeKVWrite(Protocol):
    def __call__(
        self,
        qkv: torch.Tensor,
        norm: HeadNorm | None,
        positions: torch.Tensor,
        table: torch.Tensor,
        k_pages: torch.Tensor,
        v_pages: torch.Tensor,
        pages: torch.Tensor,
        offsets: torch.Tensor,
        scale: KVScale = UNSCALED,
        keep_keys: bool = False,
    ) -> torch.Tensor: ...


def keys_and_values(
    qkv: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values in `qkv`, views `[tokens, kv_heads, dim]`."""
    kv_heads, k_dim, v_dim = k_pages.shape[1], k_pages.shape[3], v_pages.shape[3]
    v_from = qkv.shape[1] - kv_heads * v_dim
    k_from = v_from - kv_heads * k_dim
    return qkv[:, k_from:v_from].unflatten(1, (kv_heads, k_dim)), qkv[:, v_from:].unflatten(1, (kv_heads, v_dim))


def rope_kv_write_torch(
    qkv: torch.Tensor,
    norm: HeadNorm | None,
    positions: torch.Tensor,
    table: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    pages: torch.Tensor,
    offsets: torch.Tensor,
    scale: KVScale = UNSCALED,
    keep_keys: bool = False,
) -> torch.Tensor:
    kv_heads, k_dim, v_dim = k_pages.shape[1], k_pages.shape[3], v_pages.shape[3]
    v_width = kv_heads * v_dim
    heads, v = torch.split(qkv, [qkv.shape[-1] - v_width, v_width], dim=-1)
    heads, v = heads.view(len(qkv), -1, k_dim), v.view(len(qkv), kv_heads, v_dim)
    q, k = heads[:, :-kv_heads], heads[:, -kv_heads:]
    if norm is not None:
        q.copy_(rms_norm_torch(q, norm.q_weight, norm.eps, norm.offset))
        k.copy_(rms_norm_torch(k, norm.k_weight, norm.eps, norm.offset))
    rotate_heads(heads, positions, table)
    kv_write_torch(k, v, k_pages, v_pages, pages, offsets, scale)
    return q


ROPE_KV_WRITE: Op[RopeKVWrite] = Op(
    "rope_kv_write",
    (
        Implementation(
            "triton",
            "baton_kernels.triton_rope_kv_write:rope_kv_write_triton",
            Needs(device="cuda", capability=(8, 0), dtypes=TRITON_TYPES, packages=("triton",)),
        ),
        Implementation("torch", "baton_kernels.rope_kv_write:rope_kv_write_torch"),
    ),
)
