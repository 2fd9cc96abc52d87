from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from baton_kernels.activation import activation_and_mul_torch


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(("name", "exact"), [("silu", silu), ("gelu", gelu), ("gelu_tanh", gelu_tanh)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-6)])
def test_gate_matches_float64(
    name: str, exact: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype, tolerance: float
) -> None:
    gate_up = (torch.randn(7, 48) * 3).to(dtype)
    before = gate_up.clone()
    expected = exact(gate_up[:, :24].double()) * gate_up[:, 24:].double()
    result = activation_and_mul_torch(gate_up, name)
    assert result.dtype == dtype
    assert result.shape == (7, 24)
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(gate_up, before)
