"""Linear layers with 8-bit weights on a GPU: in Triton while the weights are all that counts, CUTLASS beyond.

A single row's activations stay as they are; more rows are quantised for the tensor cores' 8-bit products.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from baton_kernels.linear8 import fits, linear8_torch
from baton_kernels.quantize import Rows8
from baton_kernels.triton_launch import overlaps, wait_then_release
from baton_kernels.triton_matmul import SEVERAL, WIDE, matmul, tile_for
from baton_kernels.triton_quantize import quantize_rows_triton

_OUTPUTS = 4  # per program
_INPUTS = 4096  # per iteration
_WIDE_OUTPUTS = 16384
_FEW_OUTPUTS, _FEW_INPUTS = 4608, 1024  # up to so many outputs, smaller programs fill the chip better


@triton.jit
def _one_row_kernel(
    x_ptr,
    weight_ptr,
    scale_ptr,
    out_ptr,
    outputs,
    INPUTS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    lines = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    inside = lines < outputs
    columns = tl.arange(0, BLOCK_IN)
    places = weight_ptr + tl.where(inside, lines, 0).to(tl.int64)[:, None] * INPUTS + columns[None, :]
    scale = tl.load(scale_ptr + lines, mask=inside, other=0.0)
    # The first weights are on their way before the kernel that writes x is over.
    weight = tl.load(places, eviction_policy="evict_first")
    following = weight
    if BLOCK_IN < INPUTS:
        following = tl.load(places + BLOCK_IN, eviction_policy="evict_first")
    if OVERLAP:
        wait_then_release()
    total = weight.to(tl.float32) * tl.load(x_ptr + columns).to(tl.float32)[None, :]
    if BLOCK_IN < INPUTS:
        total += following.to(tl.float32) * tl.load(x_ptr + BLOCK_IN + columns).to(tl.float32)[None, :]
    for begin in tl.static_range(2 * BLOCK_IN, INPUTS, BLOCK_IN):
        weight = tl.load(places + begin, eviction_policy="evict_first")
        total += weight.to(tl.float32) * tl.load(x_ptr + begin + columns).to(tl.float32)[None, :]
    result = tl.sum(total, axis=1) * scale
    tl.store(out_ptr + lines, result.to(out_ptr.dtype.element_ty), mask=inside)


def linear8_cuda(
    x: torch.Tensor | Rows8,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    if isinstance(x, torch.Tensor):
        if x.shape[0] == 1 and bias is None and x.shape[1] % _INPUTS == 0:
            return one_row(x, weight, scale, dtype)
        x = quantize_rows_triton(x)
    if not fits(weight):
        return linear8_torch(x, weight, scale, bias, dtype)
    rows = x.values.shape[0]
    if rows <= SEVERAL.rows:
        wide = 32 < rows <= WIDE.rows and weight.shape[0] >= _WIDE_OUTPUTS
        return matmul(x.values, weight, bias, dtype, (x.scales, scale), WIDE if wide else tile_for(rows, 1))
    return torch._scaled_mm(
        x.values,
        weight.t(),
        scale_a=x.scales.unsqueeze(1),
        scale_b=scale.unsqueeze(0),
        bias=bias,
        out_dtype=dtype,
        use_fast_accum=True,
    )


def one_row(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`x` `[1, inputs]` as it is times the widened weights; `inputs` in whole iterations."""
    outputs, inputs = weight.shape
    out = torch.empty((1, outputs), dtype=dtype, device=x.device)
    overlap, few = overlaps(x.device), outputs <= _FEW_OUTPUTS
    _one_row_kernel[(triton.cdiv(outputs, _OUTPUTS),)](
        x,
        weight,
        scale,
        out,
        outputs,
        INPUTS=inputs,
        BLOCK_OUT=_OUTPUTS,
        BLOCK_IN=_FEW_INPUTS if few else _INPUTS,
        OVERLAP=overlap,
        num_warps=1 if few else 4,
        launch_pdl=overlap,
    )
    return out
