"""Sum over the ranks of a tensor-parallel group, residual addition and RMSNorm as one op.

Contract: like `add_rms_norm` on the sum of the ranks' `x`, which every rank calls with tensors of one shape, in one
order of calls, and which comes out equal bit by bit on every rank. `x` `[rows, dim]` is a 16-bit float, contiguous,
`dim` even, `rows` at most what the implementation was made for. `turn` is 0 and 1 in turns from call to call: two
calls in a row never name the same one, unless another collective of all ranks lies between them.
"""

from __future__ import annotations

from typing import Protocol

import torch


class ReduceAddRmsNorm(Protocol):
    """Holds what the ranks write into each other's memory."""

    @property
    def max_rows(self) -> int: ...

    def __call__(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, offset: float, turn: int
    ) -> torch.Tensor:
        """`residual += sum of x` in place, then the norm of `residual` as a new tensor like `x`."""
