"""Linear layers: `x @ weight.T + bias`.

Contract: `x` is `[rows, inputs]`, last dimension contiguous, left alone; `weight` is `[outputs, inputs]`, contiguous;
`bias` is `[outputs]` or None. The result is a new `[rows, outputs]` of x's dtype, summed in at least float32 where the
types are narrower. The implementation "invariant", which must be asked for, gives a row the same bits in any batch.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional

from baton_kernels.registry import HALF, TRITON_TYPES, Implementation, Needs, Op


class Linear(Protocol):
    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor: ...


def linear_torch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return functional.linear(x, weight, bias)


LINEAR: Op[Linear] = Op(
    "linear",
    (
        Implementation(
            "triton",
            "baton_kernels.triton_linear:linear_triton",
            Needs(device="cuda", capability=(8, 0), dtypes=HALF, packages=("triton",)),
        ),
        Implementation("torch", "baton_kernels.linear:linear_torch"),
        Implementation(
            "invariant",
            "baton_kernels.triton_matmul:linear_invariant",
            Needs(device="cuda", capability=(8, 0), dtypes=TRITON_TYPES, packages=("triton",)),
        ),
    ),
)
