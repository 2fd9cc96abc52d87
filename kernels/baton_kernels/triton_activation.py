"""The gate of a gated MLP in Triton, computed in float32 and rounded once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from baton_kernels.triton_launch import overlaps, wait_then_release

_BLOCK = 1024


@triton.jit
def _gate_kernel(
    gate_up_ptr,
    out_ptr,
    row_stride,
    width,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    start = gate_up_ptr + row * row_stride
    if OVERLAP:
        wait_then_release()
    gate = tl.load(start + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(start + width + columns, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        gate = gate / (1.0 + tl.exp(-gate))
    elif ACTIVATION == "gelu":
        gate = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    else:
        # tanh(z) = 1 - 2 / (1 + exp(2z)), with z GELU's polynomial
        z = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        gate = gate * (1.0 - 1.0 / (1.0 + tl.exp(2.0 * z)))
    tl.store(out_ptr + row * width + columns, (gate * up).to(out_ptr.dtype.element_ty), mask=inside)


def activation_and_mul_triton(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((tokens, width), dtype=gate_up.dtype, device=gate_up.device)
    if tokens:
        grid = (tokens, triton.cdiv(width, _BLOCK))
        overlap = overlaps(gate_up.device)
        _gate_kernel[grid](
            gate_up,
            out,
            gate_up.stride(0),
            width,
            ACTIVATION=activation,
            BLOCK=_BLOCK,
            OVERLAP=overlap,
            num_warps=4,
            launch_pdl=overlap,
        )
    return out
