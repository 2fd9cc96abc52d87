"""The first of a row's largest logits: what greedy sampling takes.

Contract: `logits` is `[rows, vocab]` of any float type, which is left alone; the result is int64 `[rows]`. A NaN counts
as larger than any number.
"""

from __future__ import annotations

from typing import Protocol

import torch

from baton_kernels.registry import TRITON_TYPES, Implementation, Needs, Op


class Argmax(Protocol):
    def __call__(self, logits: torch.Tensor) -> torch.Tensor: ...


def argmax_torch(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(dim=-1)


ARGMAX: Op[Argmax] = Op(
    "argmax",
    (
        Implementation(
            "triton",
            "baton_kernels.triton_argmax:argmax_triton",
            Needs(device="cuda", capability=(8, 0), dtypes=TRITON_TYPES, packages=("triton",)),
        ),
        Implementation("torch", "baton_kernels.argmax:argmax_torch"),
    ),
)
