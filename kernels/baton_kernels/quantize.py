"""8-bit floats for matrix products: rows with a scale each.

Contract of `quantize_rows`: `x` is `[rows, dim]`, last dimension contiguous, left alone; row r of the result is
`x[r] / scale[r]` rounded to `FP8`, with `scale[r] = max|x[r]| / 448`, so that the largest value becomes the largest
float of 8 bits. A row of zeros gets the scale `LEAST_SCALE`. A row's result depends on that row alone.
Source of the scheme: Micikevicius et al. 2022, "FP8 Formats for Deep Learning", https://arxiv.org/abs/2209.05433.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from baton_kernels.activation import activation_and_mul_torch
from baton_kernels.registry import HALF, Implementation, Needs, Op
from baton_kernels.rms_norm import add_rms_norm_torch, rms_norm_torch

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
LEAST_SCALE = 1e-12


class Rows8(NamedTuple):
    """`values` FP8 `[rows, dim]`, contiguous, times `scales` float32 `[rows]`."""

    values: torch.Tensor
    scales: torch.Tensor


class QuantizeRows(Protocol):
    def __call__(self, x: torch.Tensor) -> Rows8: ...


def quantize_rows_torch(x: torch.Tensor) -> Rows8:
    wide = x.float()
    # A product, which is rounded alike everywhere: CUDA divides by a number as if by its inverse.
    scales = (wide.abs().amax(dim=-1) * (1.0 / FP8_MAX)).clamp(min=LEAST_SCALE)
    return Rows8((wide / scales.unsqueeze(-1)).clamp(-FP8_MAX, FP8_MAX).to(FP8), scales)


class NormRows8(Protocol):
    def __call__(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, offset: float
    ) -> Rows8:
        """`quantize_rows` of `add_rms_norm`, or of `rms_norm` without `residual`; `x` is `[rows, dim]`."""


class GateRows8(Protocol):
    def __call__(self, gate_up: torch.Tensor, activation: str) -> Rows8:
        """`quantize_rows` of `activation_and_mul`."""


def norm_rows8_torch(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, offset: float
) -> Rows8:
    normed = (
        rms_norm_torch(x, weight, eps, offset)
        if residual is None
        else add_rms_norm_torch(x, residual, weight, eps, offset)
    )
    return quantize_rows_torch(normed)


def gate_rows8_torch(gate_up: torch.Tensor, activation: str) -> Rows8:
    return quantize_rows_torch(activation_and_mul_torch(gate_up, activation))


_TRITON = Needs(device="cuda", capability=(8, 9), dtypes=HALF, packages=("triton",))
NORM_ROWS8: Op[NormRows8] = Op(
    "norm_rows8",
    (
        Implementation("triton", "baton_kernels.triton_quantize:norm_rows8_triton", _TRITON),
        Implementation("torch", "baton_kernels.quantize:norm_rows8_torch"),
    ),
)
GATE_ROWS8: Op[GateRows8] = Op(
    "gate_rows8",
    (
        Implementation("triton", "baton_kernels.triton_quantize:gate_rows8_triton", _TRITON),
        Implementation("torch", "baton_kernels.quantize:gate_rows8_torch"),
    ),
)
QUANTIZE_ROWS: Op[QuantizeRows] = Op(
    "quantize_rows",
    (
        Implementation("triton", "baton_kernels.triton_quantize:quantize_rows_triton", _TRITON),
        Implementation("torch", "baton_kernels.quantize:quantize_rows_torch"),
    ),
)
