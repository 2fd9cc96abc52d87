"""Causal attention of new tokens over KV pages: the contract, a plain reference, and the implementations.

Attention is planned once per step and KV group (`PagedAttention.plan`), then run once per layer. The keys and values
of the new tokens are already in their pages when it runs. There are two tables because prefill and decode back ends
are chosen apart: EXTEND takes rows of any number of new tokens, DECODE rows of exactly one. EXTEND's "triton" is
DECODE's "triton_extend": with both, a token's result depends on its own row alone, however the prompt was cut.

Contract of `run`: `q` is `[tokens, q_heads, k_dim]`, the rows' new tokens one after the other, any strides with a
contiguous last dimension; `k_pages` and `v_pages` are strided views `[pages, kv_heads, page_size, dim]` of the pool in
which the pair (page, head) has one uniform stride and a (page, head) cell is contiguous. The result is
`[tokens, q_heads, v_dim]` in q's dtype. Query head h reads kv-head `h // (q_heads / kv_heads)`. New token j of a row
with `kv_len` tokens and `q_len` new ones stands at position `p = kv_len - q_len + j` and sees positions
`max(0, p - window + 1) .. p`. Scores are `scale * q·k`, then `softcap * tanh(score / softcap)` if a softcap is set.
Keys and values are the pages' numbers times `scale`.
Values at positions outside a row never reach the result, not even NaN left behind by an earlier owner of a page.

A plan may read the new tokens' keys and values where the model has just computed them rather than from their pages,
when its rows hold no other tokens (`reads_new`): then `run` is given those, `[tokens, kv_heads, dim]` in q's dtype and
without scale, in the place of pages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from baton_kernels.kv_scale import UNSCALED, KVScale
from baton_kernels.registry import HALF, TRITON_TYPES, Implementation, Needs, Op


@dataclass(frozen=True)
class AttentionSpec:
    """What stays the same over all steps for the layers of one KV group on one rank.

    `window` is the number of most recent tokens a query sees, itself included (None: all). `dtype` is that of the
    queries, `kv_dtype` that of the pool.
    """

    q_heads: int
    kv_heads: int
    k_dim: int
    v_dim: int
    page_size: int
    scale: float
    dtype: torch.dtype
    kv_dtype: torch.dtype
    device: torch.device
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True)
class PagedRows:
    """The rows of one step that one back end attends to.

    `q_lens` and `kv_lens` are on the host, new tokens and tokens altogether of each row. `page_table` is integer
    `[rows, at least ceil(max(kv_lens) / page_size)]` on the device: entry p holds tokens from `p * page_size` on.
    Entries that no query of the row can see may be anything. `device_lens` is `kv_lens` as int32 `[rows]` on the
    device, where that is there already, and `device_q_lens` is `q_lens`; capturable back ends then read these alone,
    and `q_lens` on the host only bounds the number of tokens by its sum.
    """

    q_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    page_table: torch.Tensor
    device_lens: torch.Tensor | None = None
    device_q_lens: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        """New tokens of all rows; with `device_q_lens`, a bound of them."""
        return sum(self.q_lens)


class PlannedAttention(Protocol):
    @property
    def reads_new(self) -> bool:
        """Whether `run` takes keys and values of the new tokens in the place of pages."""

    def run(
        self, q: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor, scale: KVScale = UNSCALED
    ) -> torch.Tensor: ...


class PagedAttention(Protocol):
    """One back end for one KV group. A plan is valid until the next call of `plan`.

    `capturable`: plans follow from device tensors alone, so `plan` and `run` may be captured in a CUDA graph.
    """

    @property
    def capturable(self) -> bool: ...

    def plan(self, rows: PagedRows) -> PlannedAttention: ...


PagedAttentionFactory = Callable[[AttentionSpec], PagedAttention]


def paged_attention_reference(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    rows: PagedRows,
    spec: AttentionSpec,
    scale: KVScale = UNSCALED,
) -> torch.Tensor:
    """The contract spelled out token by token in q's dtype: slow, for tests."""
    group = spec.q_heads // spec.kv_heads
    results = []
    start = 0
    for row, (q_len, kv_len) in enumerate(zip(rows.q_lens, rows.kv_lens, strict=True)):
        for j in range(q_len):
            last = kv_len - q_len + j
            first = 0 if spec.window is None else max(0, last - spec.window + 1)
            seen = torch.arange(first, last + 1, device=q.device)
            pages = rows.page_table[row, seen // spec.page_size].long()
            keys = k_pages[pages, :, seen % spec.page_size].to(q.dtype).repeat_interleave(group, dim=1) * scale.k
            values = v_pages[pages, :, seen % spec.page_size].to(q.dtype).repeat_interleave(group, dim=1) * scale.v
            scores = torch.einsum("hd,khd->hk", q[start + j], keys) * spec.scale
            if spec.softcap is not None:
                scores = spec.softcap * torch.tanh(scores / spec.softcap)
            results.append(torch.einsum("hk,khd->hd", torch.softmax(scores, dim=-1), values))
        start += q_len
    return torch.stack(results) if results else q.new_empty(0, spec.q_heads, spec.v_dim)


_FLASHINFER = Implementation(
    "flashinfer",
    "baton_kernels.paged_attention_flashinfer:FlashInferAttention",
    Needs(device="cuda", capability=(8, 0), dtypes=HALF, packages=("flashinfer",)),
)
_FA3 = Implementation(
    "fa3",
    "baton_kernels.paged_attention_flashinfer:FlashInferFa3Attention",
    Needs(device="cuda", major=9, dtypes=HALF, packages=("flashinfer",)),
)
_TRITON = Implementation(
    "triton",
    "baton_kernels.paged_attention_triton:TritonDecodeAttention",
    Needs(device="cuda", capability=(8, 0), dtypes=TRITON_TYPES, packages=("triton",)),
)
_TRITON_EXTEND = Implementation(
    "triton",
    "baton_kernels.extend_attention_triton:TritonExtendAttention",
    Needs(device="cuda", capability=(8, 0), dtypes=TRITON_TYPES, packages=("triton",)),
)
EXTEND_ATTENTION: Op[PagedAttentionFactory] = Op(
    "extend_attention",
    (
        _FA3,
        _FLASHINFER,
        _TRITON_EXTEND,
        Implementation("torch_native", "baton_kernels.paged_attention_torch:TorchExtendAttention"),
    ),
)
DECODE_ATTENTION: Op[PagedAttentionFactory] = Op(
    "decode_attention",
    (
        _TRITON,
        _FLASHINFER,
        _FA3,
        Implementation("torch_native", "baton_kernels.paged_attention_torch:TorchDecodeAttention"),
        replace(_TRITON_EXTEND, name="triton_extend"),
    ),
)
