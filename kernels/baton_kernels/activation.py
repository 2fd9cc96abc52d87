"""The gate of a gated MLP: `activation(gate) * up`.

Contract: `gate_up` is `[tokens, 2 * width]`, gate first, last dimension contiguous, left alone; the result is a new
`[tokens, width]` of the same dtype. `activation` is one of ACTIVATIONS; "gelu_tanh" is GELU's tanh approximation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch.nn import functional

from baton_kernels.registry import TRITON_TYPES, Implementation, Needs, Op


class ActivationAndMul(Protocol):
    def __call__(self, gate_up: torch.Tensor, activation: str) -> torch.Tensor: ...


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return functional.gelu(x, approximate="tanh")


ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = MappingProxyType(
    {"silu": functional.silu, "gelu": functional.gelu, "gelu_tanh": _gelu_tanh}
)


def activation_and_mul_torch(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate).mul_(up)


ACTIVATION_AND_MUL: Op[ActivationAndMul] = Op(
    "activation_and_mul",
    (
        Implementation(
            "triton",
            "baton_kernels.triton_activation:activation_and_mul_triton",
            Needs(device="cuda", capability=(8, 0), dtypes=TRITON_TYPES, packages=("triton",)),
        ),
        Implementation("torch", "baton_kernels.activation:activation_and_mul_torch"),
    ),
)
