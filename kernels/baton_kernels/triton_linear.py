"""A linear layer on few rows in Triton: a stream of weights at the rate of the memory. More rows go to cuBLAS.

For a single row a program sums few outputs over all inputs, so that there are enough programs to fill the chip without
a second pass. A layer with many more inputs than outputs has few tiles with long sums: there, for some dozens of rows,
cuBLASLt chooses best.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from baton_kernels.linear import linear_torch
from baton_kernels.triton_launch import overlaps, wait_then_release
from baton_kernels.triton_matmul import linear_invariant

_OUTPUTS = 4  # per program
_INPUTS = 2048  # per iteration
_FEW_ROWS = 32  # from here on cuBLAS is as fast
_LONG_SUMS = range(17, 113)  # rows for which cuBLASLt is best at these: by 5 to 10% at 12,288 inputs for 4,096 outputs


@triton.jit
def _one_row_kernel(
    x_ptr,
    weight_ptr,
    out_ptr,
    outputs,
    INPUTS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    lines = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    inside = (lines < outputs)[:, None]
    columns = tl.arange(0, BLOCK_IN)
    places = weight_ptr + lines.to(tl.int64)[:, None] * INPUTS + columns[None, :]
    # The first weights are on their way before the kernel that writes x is over.
    weight = tl.load(places, mask=inside, other=0.0, eviction_policy="evict_first")
    following = tl.load(places + BLOCK_IN, mask=inside & (BLOCK_IN < INPUTS), other=0.0, eviction_policy="evict_first")
    if OVERLAP:
        wait_then_release()
    total = weight.to(tl.float32) * tl.load(x_ptr + columns).to(tl.float32)[None, :]
    if BLOCK_IN < INPUTS:
        total += following.to(tl.float32) * tl.load(x_ptr + BLOCK_IN + columns).to(tl.float32)[None, :]
    for begin in tl.static_range(2 * BLOCK_IN, INPUTS, BLOCK_IN):
        weight = tl.load(places + begin, mask=inside, other=0.0, eviction_policy="evict_first")
        total += weight.to(tl.float32) * tl.load(x_ptr + begin + columns).to(tl.float32)[None, :]
    tl.store(out_ptr + lines, tl.sum(total, axis=1).to(out_ptr.dtype.element_ty), mask=lines < outputs)


def linear_triton(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    outputs, inputs = weight.shape
    if x.shape[0] != 1 or bias is not None or inputs % _INPUTS:
        if bias is None and 2 * inputs > 3 * outputs and x.shape[0] in _LONG_SUMS:
            # torch takes a product with a bias to cuBLASLt.
            return linear_torch(x, weight, _no_bias(outputs, x.dtype, x.device))
        if 1 < x.shape[0] <= _FEW_ROWS and inputs % 16 == 0 and x.element_size() == 2:
            return linear_invariant(x, weight, bias)
        return linear_torch(x, weight, bias)
    out = torch.empty((1, outputs), dtype=x.dtype, device=x.device)
    overlap = overlaps(x.device)
    _one_row_kernel[(triton.cdiv(outputs, _OUTPUTS),)](
        x,
        weight,
        out,
        outputs,
        INPUTS=inputs,
        BLOCK_OUT=_OUTPUTS,
        BLOCK_IN=_INPUTS,
        OVERLAP=overlap,
        num_warps=4,
        launch_pdl=overlap,
    )
    return out


@functools.cache
def _no_bias(outputs: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.zeros(outputs, dtype=dtype, device=device)
