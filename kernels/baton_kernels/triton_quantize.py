"""Rows to 8-bit floats in Triton, alone and fused with what makes the rows: norms and the MLP's gate.

One program per row, which it holds in registers: the largest value is known before the first one is written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from baton_kernels.quantize import FP8, FP8_MAX, LEAST_SCALE, Rows8
from baton_kernels.triton_launch import overlaps, wait_then_release
from baton_kernels.triton_norm import norm_row

_ACTIVATION_CODES = {"silu": 0, "gelu": 1, "gelu_tanh": 2}


@triton.jit
def _store_row(values_ptr, scales_ptr, row, x, columns, inside, dim, LIMIT: tl.constexpr, LEAST: tl.constexpr):
    """Row `row` of the result from `x` in float32, zero outside."""
    scale = tl.maximum(tl.max(tl.abs(x), axis=0) * (1.0 / LIMIT), LEAST)
    # The clamp keeps what is rounded up below the format's end.
    scaled = tl.clamp(tl.div_rn(x, tl.zeros_like(x) + scale), -LIMIT, LIMIT)
    tl.store(values_ptr + row * dim + columns, scaled.to(values_ptr.dtype.element_ty), mask=inside)
    tl.store(scales_ptr + row, scale)


@triton.jit
def _quantize_kernel(
    x_ptr,
    values_ptr,
    scales_ptr,
    x_stride,
    dim,
    LIMIT: tl.constexpr,
    LEAST: tl.constexpr,
    OVERLAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < dim
    if OVERLAP:
        wait_then_release()
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    _store_row(values_ptr, scales_ptr, row, x, columns, inside, dim, LIMIT, LEAST)


@triton.jit
def _norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    values_ptr,
    scales_ptr,
    x_stride,
    residual_stride,
    dim,
    eps,
    offset,
    ADD: tl.constexpr,
    LIMIT: tl.constexpr,
    LEAST: tl.constexpr,
    OVERLAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < dim
    normed = norm_row(
        x_ptr + row * x_stride,
        residual_ptr + row * residual_stride,
        weight_ptr,
        columns,
        inside,
        dim,
        eps,
        offset,
        ADD,
        OVERLAP,
    )
    # Rounded to the model's type first, as the norm alone does: both ways give the same 8-bit rows.
    normed = normed.to(weight_ptr.dtype.element_ty).to(tl.float32)
    _store_row(values_ptr, scales_ptr, row, tl.where(inside, normed, 0.0), columns, inside, dim, LIMIT, LEAST)


@triton.jit
def _gate_kernel(
    gate_up_ptr,
    values_ptr,
    scales_ptr,
    row_stride,
    width,
    ACTIVATION: tl.constexpr,
    LIMIT: tl.constexpr,
    LEAST: tl.constexpr,
    OVERLAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    start = gate_up_ptr + row * row_stride
    if OVERLAP:
        wait_then_release()
    gate = tl.load(start + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(start + width + columns, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == 0:
        gate = gate / (1.0 + tl.exp(-gate))
    elif ACTIVATION == 1:
        gate = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    else:
        # tanh(z) = 1 - 2 / (1 + exp(2z)), with z GELU's polynomial
        z = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        gate = gate * (1.0 - 1.0 / (1.0 + tl.exp(2.0 * z)))
    gated = (gate * up).to(gate_up_ptr.dtype.element_ty).to(tl.float32)
    _store_row(values_ptr, scales_ptr, row, gated, columns, inside, width, LIMIT, LEAST)


def _rows8(rows: int, dim: int, device: torch.device) -> Rows8:
    return Rows8(
        torch.empty((rows, dim), dtype=FP8, device=device), torch.empty(rows, dtype=torch.float32, device=device)
    )


def _warps(block: int) -> int:
    return min(32, max(1, block // 512))


def quantize_rows_triton(x: torch.Tensor) -> Rows8:
    rows, dim = x.shape
    out, block, overlap = _rows8(rows, dim, x.device), triton.next_power_of_2(dim), overlaps(x.device)
    if rows:
        _quantize_kernel[(rows,)](
            x,
            *out,
            x.stride(0),
            dim,
            LIMIT=FP8_MAX,
            LEAST=LEAST_SCALE,
            OVERLAP=overlap,
            BLOCK=block,
            num_warps=_warps(block),
            launch_pdl=overlap,
        )
    return out


def norm_rows8_triton(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, offset: float
) -> Rows8:
    rows, dim = x.shape
    out, block, overlap = _rows8(rows, dim, x.device), triton.next_power_of_2(dim), overlaps(x.device)
    added = x if residual is None else residual
    if rows:
        _norm_kernel[(rows,)](
            x,
            added,
            weight,
            *out,
            x.stride(0),
            added.stride(0),
            dim,
            eps,
            offset,
            ADD=residual is not None,
            LIMIT=FP8_MAX,
            LEAST=LEAST_SCALE,
            OVERLAP=overlap,
            BLOCK=block,
            num_warps=_warps(block),
            launch_pdl=overlap,
        )
    return out


def gate_rows8_triton(gate_up: torch.Tensor, activation: str) -> Rows8:
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out, block, overlap = _rows8(rows, width, gate_up.device), triton.next_power_of_2(width), overlaps(gate_up.device)
    if rows:
        _gate_kernel[(rows,)](
            gate_up,
            *out,
            gate_up.stride(0),
            width,
            ACTIVATION=_ACTIVATION_CODES[activation],
            LIMIT=FP8_MAX,
            LEAST=LEAST_SCALE,
            OVERLAP=overlap,
            BLOCK=block,
            num_warps=_warps(block),
            launch_pdl=overlap,
        )
    return out
