"""A linear layer on a single row in Triton: a stream of weights at the rate of the memory. More rows go to cuBLAS.

A program sums few outputs over all inputs, so that there are enough programs to fill the chip without a second pass.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from baton_kernels.linear import linear_torch

_OUTPUTS = 4  # per program
_INPUTS = 1024  # per iteration


@triton.jit
def _one_row_kernel(
    x_ptr, weight_ptr, out_ptr, outputs, INPUTS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr
):
    lines = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    inside = lines < outputs
    starts = weight_ptr + lines.to(tl.int64)[:, None] * INPUTS
    columns = tl.arange(0, BLOCK_IN)
    total = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    for begin in tl.static_range(0, INPUTS, BLOCK_IN):
        weight = tl.load(
            starts + (begin + columns)[None, :], mask=inside[:, None], other=0.0, eviction_policy="evict_first"
        )
        x = tl.load(x_ptr + begin + columns)
        total += weight.to(tl.float32) * x.to(tl.float32)[None, :]
    tl.store(out_ptr + lines, tl.sum(total, axis=1).to(out_ptr.dtype.element_ty), mask=inside)


def linear_triton(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    outputs, inputs = weight.shape
    if x.shape[0] != 1 or bias is not None or inputs % _INPUTS:
        return linear_torch(x, weight, bias)
    out = torch.empty((1, outputs), dtype=x.dtype, device=x.device)
    _one_row_kernel[(triton.cdiv(outputs, _OUTPUTS),)](
        x, weight, out, outputs, INPUTS=inputs, BLOCK_OUT=_OUTPUTS, BLOCK_IN=_INPUTS, num_warps=4
    )
    return out
