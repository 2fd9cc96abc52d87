"""Linear layers whose weights are 8-bit floats with a scale per output: `(x @ (weight * scale).T) + bias`.

Contract: `weight` is FP8 `[outputs, inputs]`, contiguous, `scale` float32 `[outputs]`, `bias` `[outputs]` or None.
`x` is `[rows, inputs]`, contiguous rows, or the same as `Rows8`; in the first case an implementation may quantise it
row by row as `quantize_rows` does, or use it as it is, which is more exact. The result is a new `[rows, outputs]` of
`dtype`, summed in about float32.
"""

from __future__ import annotations

from typing import Protocol

import torch

from baton_kernels.quantize import FP8, Rows8, quantize_rows_torch
from baton_kernels.registry import HALF, Implementation, Needs, Op


class Linear8(Protocol):
    def __call__(
        self,
        x: torch.Tensor | Rows8,
        weight: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor: ...


def linear8_torch(
    x: torch.Tensor | Rows8,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    rows = x if isinstance(x, Rows8) else quantize_rows_torch(x)
    out = (rows.values.float() @ weight.float().T) * rows.scales.unsqueeze(1) * scale
    return (out if bias is None else out + bias.float()).to(dtype)


def fits(weight: torch.Tensor) -> bool:
    """Whether the tensor cores' kernels take this weight: both sides multiples of 16."""
    return weight.dtype == FP8 and weight.shape[0] % 16 == 0 and weight.shape[1] % 16 == 0


LINEAR8: Op[Linear8] = Op(
    "linear8",
    (
        Implementation(
            "cuda",
            "baton_kernels.triton_linear8:linear8_cuda",
            Needs(device="cuda", capability=(8, 9), dtypes=HALF, packages=("triton",)),
        ),
        Implementation("torch", "baton_kernels.linear8:linear8_torch"),
        Implementation(
            "invariant",
            "baton_kernels.triton_matmul:linear8_invariant",
            Needs(device="cuda", capability=(8, 9), dtypes=HALF, packages=("triton",)),
        ),
    ),
)
