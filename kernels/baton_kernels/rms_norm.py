"""RMSNorm, alone and fused with the residual addition before it.

Contract, both ops: `x` is `[..., dim]`, last dimension contiguous; `weight` is `[dim]` in x's dtype; the result is
`x / rms(x) * (weight + offset)`, computed in at least float32 and rounded once to x's dtype. `offset` is 1 for models
that store the weight minus one (Gemma), else 0. Source: Zhang and Sennrich 2019, "Root Mean Square Layer
Normalization", https://arxiv.org/abs/1910.07467.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional

from baton_kernels.registry import TRITON_TYPES, Implementation, Needs, Op


class RmsNorm(Protocol):
    def __call__(self, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
        """A new tensor like `x`; `x` is left alone."""


class AddRmsNorm(Protocol):
    def __call__(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0
    ) -> torch.Tensor:
        """`residual += x` in place, then the norm of `residual` as a tensor like `x` (which may be overwritten)."""


def rms_norm_torch(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    scale = weight.to(wide) + offset if offset else weight.to(wide)
    return functional.rms_norm(x.to(wide), x.shape[-1:], scale, eps).to(x.dtype)


def add_rms_norm_torch(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0
) -> torch.Tensor:
    residual.add_(x)
    return rms_norm_torch(residual, weight, eps, offset)


_TRITON = Needs(device="cuda", capability=(8, 0), dtypes=TRITON_TYPES, packages=("triton",))
RMS_NORM: Op[RmsNorm] = Op(
    "rms_norm",
    (
        Implementation("triton", "baton_kernels.triton_norm:rms_norm_triton", _TRITON),
        Implementation("torch", "baton_kernels.rms_norm:rms_norm_torch"),
    ),
)
ADD_RMS_NORM: Op[AddRmsNorm] = Op(
    "add_rms_norm",
    (
        Implementation("triton", "baton_kernels.triton_norm:add_rms_norm_triton", _TRITON),
        Implementation("torch", "baton_kernels.rms_norm:add_rms_norm_torch"),
    ),
)
