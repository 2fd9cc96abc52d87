"""Rotary position embedding, half-rotate (NeoX) style.

Contract: `q` is `[tokens, q_heads, head_dim]` and `k` is `[tokens, kv_heads, head_dim]`, last dimension contiguous,
other strides free; both are rotated in place. `positions` is integer `[tokens]`. `table` is float32
`[max_positions, rotary_dim]`: cosines in its first half, sines in its second, any scaling of the angles or of their
amplitude already applied. The first `rotary_dim` values of a head are rotated, the others kept; value i is paired with
value `i + rotary_dim / 2`. Source: Su et al. 2021, https://arxiv.org/abs/2104.09864, in GPT-NeoX's pairing.
"""

from __future__ import annotations

from typing import Protocol

import torch

from baton_kernels.registry import Implementation, Op


class Rope(Protocol):
    def __call__(self, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, table: torch.Tensor) -> None: ...


def rope_table(inv_freq: torch.Tensor, max_positions: int, amplitude: float = 1.0) -> torch.Tensor:
    """The table for angular frequencies `inv_freq` (`[rotary_dim / 2]`, radians per position), on their device."""
    positions = torch.arange(max_positions, dtype=torch.float32, device=inv_freq.device)
    angles = torch.outer(positions, inv_freq.float())
    return torch.cat((angles.cos(), angles.sin()), dim=-1) * amplitude


def rotate_heads(heads: torch.Tensor, positions: torch.Tensor, table: torch.Tensor) -> None:
    """The same for one tensor of heads `[tokens, heads, head_dim]`, whatever they are."""
    half = table.shape[-1] // 2
    cos, sin = torch.split(table.index_select(0, positions).unsqueeze(1), half, dim=-1)
    low, high = heads[..., :half], heads[..., half : 2 * half]
    turned_low = low * cos - high * sin
    high.copy_(high * cos + low * sin)
    low.copy_(turned_low)


def rope_torch(q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, table: torch.Tensor) -> None:
    rotate_heads(q, positions, table)
    rotate_heads(k, positions, table)


ROPE: Op[Rope] = Op("rope", (Implementation("torch", "baton_kernels.rope:rope_torch"),))
