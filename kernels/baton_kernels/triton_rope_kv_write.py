"""q/k norm, RoPE and KV write in one Triton kernel: every value of the projection is read once and written once.

A program handles up to eight heads of one token, all queries, all keys or all values. Queries are rotated in place, and
keys where they are kept.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from baton_kernels.kv_scale import UNSCALED, KVScale
from baton_kernels.rope_kv_write import HeadNorm, rope_kv_write_torch
from baton_kernels.triton_launch import holds_8_bit_floats, overlaps, wait_then_release

_HEADS = 8  # per program


@triton.jit
def _saturate(x, inverse, LIMIT: tl.constexpr):
    """`x` in float32, for pages of 8-bit floats scaled and within their range; NaN stays NaN."""
    x = x.to(tl.float32)
    return tl.clamp(x * inverse, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL) if LIMIT > 0 else x


@triton.jit
def _rope_kv_write_kernel(
    qkv_ptr,
    q_weight_ptr,
    k_weight_ptr,
    positions_ptr,
    table_ptr,
    k_ptr,
    v_ptr,
    pages_ptr,
    offsets_ptr,
    qkv_stride,
    table_stride,
    k_page_stride,
    k_head_stride,
    k_slot_stride,
    v_page_stride,
    v_head_stride,
    v_slot_stride,
    q_heads,
    kv_heads,
    eps,
    norm_offset,
    k_inverse,
    v_inverse,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    HALF: tl.constexpr,
    NORM: tl.constexpr,
    LIMIT: tl.constexpr,
    KEEP_KEYS: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_V: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        wait_then_release()
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    q_parts = tl.cdiv(q_heads, HEADS)
    kv_parts = tl.cdiv(kv_heads, HEADS)
    row = qkv_ptr + token * qkv_stride
    if part >= q_parts + kv_parts:
        v_heads = (part - q_parts - kv_parts) * HEADS + tl.arange(0, HEADS)[:, None]
        v_dims = tl.arange(0, BLOCK_V)[None, :]
        v_inside = (v_heads < kv_heads) & (v_dims < V_DIM)
        values = tl.load(row + (q_heads + kv_heads) * K_DIM + v_heads * V_DIM + v_dims, mask=v_inside, other=0.0)
        v_place = v_ptr + tl.load(pages_ptr + token).to(tl.int64) * v_page_stride
        v_place += tl.load(offsets_ptr + token) * v_slot_stride + v_heads.to(tl.int64) * v_head_stride
        tl.store(v_place + v_dims, _saturate(values, v_inverse, LIMIT).to(v_ptr.dtype.element_ty), mask=v_inside)
    else:
        is_key = part >= q_parts
        first = tl.where(is_key, part - q_parts, part) * HEADS
        heads = first + tl.arange(0, HEADS)[:, None]
        count = tl.where(is_key, kv_heads, q_heads)
        dims = tl.arange(0, BLOCK_HALF)[None, :]
        inside = (heads < count) & (dims < HALF)
        source = row + tl.where(is_key, q_heads, 0) * K_DIM + heads * K_DIM
        low = tl.load(source + dims, mask=inside, other=0.0).to(tl.float32)
        high = tl.load(source + HALF + dims, mask=inside, other=0.0).to(tl.float32)
        rest_dims = 2 * HALF + tl.arange(0, BLOCK_REST)[None, :]
        rest_inside = (heads < count) & (rest_dims < K_DIM)
        rest = tl.zeros((HEADS, BLOCK_REST), tl.float32)
        if 2 * HALF < K_DIM:
            rest = tl.load(source + rest_dims, mask=rest_inside, other=0.0).to(tl.float32)
        if NORM:
            squares = tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1) + tl.sum(rest * rest, axis=1)
            scale = tl.rsqrt(squares / K_DIM + eps)[:, None]
            weight = q_weight_ptr
            if is_key:
                weight = k_weight_ptr
            in_half = dims < HALF
            low *= scale * (tl.load(weight + dims, mask=in_half, other=0.0).to(tl.float32) + norm_offset)
            high *= scale * (tl.load(weight + HALF + dims, mask=in_half, other=0.0).to(tl.float32) + norm_offset)
            if 2 * HALF < K_DIM:
                rest_weight = tl.load(weight + rest_dims, mask=rest_dims < K_DIM, other=0.0).to(tl.float32)
                rest *= scale * (rest_weight + norm_offset)
        angles = table_ptr + tl.load(positions_ptr + token) * table_stride
        cos = tl.load(angles + dims, mask=dims < HALF, other=0.0)
        sin = tl.load(angles + HALF + dims, mask=dims < HALF, other=0.0)
        turned_low = low * cos - high * sin
        turned_high = high * cos + low * sin
        if is_key:
            target = k_ptr + tl.load(pages_ptr + token).to(tl.int64) * k_page_stride
            target += tl.load(offsets_ptr + token) * k_slot_stride + heads.to(tl.int64) * k_head_stride
            tl.store(target + dims, _saturate(turned_low, k_inverse, LIMIT).to(k_ptr.dtype.element_ty), mask=inside)
            tl.store(
                target + HALF + dims, _saturate(turned_high, k_inverse, LIMIT).to(k_ptr.dtype.element_ty), mask=inside
            )
            if 2 * HALF < K_DIM:
                tl.store(
                    target + rest_dims, _saturate(rest, k_inverse, LIMIT).to(k_ptr.dtype.element_ty), mask=rest_inside
                )
        kept = (part < q_parts) | KEEP_KEYS
        tl.store(source + dims, turned_low.to(qkv_ptr.dtype.element_ty), mask=inside & kept)
        tl.store(source + HALF + dims, turned_high.to(qkv_ptr.dtype.element_ty), mask=inside & kept)
        if NORM and 2 * HALF < K_DIM:
            tl.store(source + rest_dims, rest.to(qkv_ptr.dtype.element_ty), mask=rest_inside & kept)


def rope_kv_write_triton(
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
    narrow = k_pages.dtype.itemsize == 1
    if narrow and not holds_8_bit_floats(qkv.device):
        return rope_kv_write_torch(qkv, norm, positions, table, k_pages, v_pages, pages, offsets, scale, keep_keys)
    tokens, width = qkv.shape
    kv_heads, k_dim, v_dim = k_pages.shape[1], k_pages.shape[3], v_pages.shape[3]
    q_heads = (width - kv_heads * (k_dim + v_dim)) // k_dim
    half, overlap = table.shape[1] // 2, overlaps(qkv.device)
    if tokens:
        _rope_kv_write_kernel[(tokens, triton.cdiv(q_heads, _HEADS) + 2 * triton.cdiv(kv_heads, _HEADS))](
            qkv,
            qkv if norm is None else norm.q_weight,
            qkv if norm is None else norm.k_weight,
            positions,
            table,
            k_pages,
            v_pages,
            pages,
            offsets,
            qkv.stride(0),
            table.stride(0),
            *k_pages.stride()[:3],
            *v_pages.stride()[:3],
            q_heads,
            kv_heads,
            0.0 if norm is None else norm.eps,
            0.0 if norm is None else norm.offset,
            1.0 / scale.k,
            1.0 / scale.v,
            K_DIM=k_dim,
            V_DIM=v_dim,
            HALF=half,
            NORM=norm is not None,
            LIMIT=torch.finfo(k_pages.dtype).max if narrow else 0.0,
            KEEP_KEYS=keep_keys,
            HEADS=_HEADS,
            BLOCK_HALF=triton.next_power_of_2(half),
            BLOCK_REST=triton.next_power_of_2(max(1, k_dim - 2 * half)),
            BLOCK_V=triton.next_power_of_2(v_dim),
            OVERLAP=overlap,
            num_warps=4,
            launch_pdl=overlap,
        )
    return qkv[:, : q_heads * k_dim].view(tokens, q_heads, k_dim)
