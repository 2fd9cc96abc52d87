"""RMSNorm in Triton, alone and fused with the residual addition: one program per row, which it reads once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from baton_kernels.triton_launch import overlaps, wait_then_release


@triton.jit
def norm_row(
    x_ptr,
    residual_ptr,
    weight_ptr,
    columns,
    inside,
    dim,
    eps,
    offset,
    ADD: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """A row's norm in float32, of what `x_ptr` points to; with ADD that is added to the residual first, in place."""
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32) + offset
    if OVERLAP:
        wait_then_release()
    x = tl.load(x_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        place = residual_ptr + columns
        total = (x + tl.load(place, mask=inside, other=0.0).to(tl.float32)).to(residual_ptr.dtype.element_ty)
        tl.store(place, total, mask=inside)
        x = total.to(tl.float32)
    return x * tl.rsqrt(tl.sum(x * x, axis=0) / dim + eps) * weight


@triton.jit
def _rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    x_stride,
    residual_stride,
    dim,
    eps,
    offset,
    ADD: tl.constexpr,
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
    tl.store(out_ptr + row * dim + columns, normed.to(out_ptr.dtype.element_ty), mask=inside)


def _launch(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, offset: float
) -> torch.Tensor:
    dim = x.shape[-1]
    rows = x.reshape(-1, dim)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if rows.shape[0] == 0:
        return out
    added = rows if residual is None else residual.view(-1, dim)
    block, overlap = triton.next_power_of_2(dim), overlaps(x.device)
    _rms_norm_kernel[(rows.shape[0],)](
        rows,
        added,
        weight,
        out,
        rows.stride(0),
        added.stride(0),
        dim,
        eps,
        offset,
        ADD=residual is not None,
        OVERLAP=overlap,
        BLOCK=block,
        num_warps=min(8, max(1, block // 512)),
        launch_pdl=overlap,
    )
    return out


def rms_norm_triton(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    return _launch(x, None, weight, eps, offset)


def add_rms_norm_triton(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0
) -> torch.Tensor:
    return _launch(x, residual, weight, eps, offset)
