from __future__ import annotations

import pytest
import torch

from baton_kernels.rms_norm import add_rms_norm_torch, rms_norm_torch

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-8}


def exact(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
    x, weight = x.double(), weight.double()
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * (weight + offset)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(1, 8), (5, 64), (3, 4, 24), (0, 16)])
def test_norm_matches_float64(dtype: torch.dtype, offset: float, shape: tuple[int, ...]) -> None:
    x = (torch.randn(shape) * 3).to(dtype)
    weight = torch.randn(shape[-1]).to(dtype)
    before = x.clone()
    result = rms_norm_torch(x, weight, 1e-5, offset)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), exact(x, weight, 1e-5, offset), rtol=TOLERANCE[dtype], atol=1e-6)
    assert torch.equal(x, before)


def test_norm_of_strided_rows() -> None:
    x = torch.randn(4, 96)[:, 16:48].view(4, 2, 16)
    weight = torch.randn(16)
    torch.testing.assert_close(
        rms_norm_torch(x, weight, 1e-6).double(), exact(x, weight, 1e-6, 0.0), rtol=1e-6, atol=1e-6
    )


def test_zero_rows_stay_zero() -> None:
    assert torch.equal(rms_norm_torch(torch.zeros(2, 8), torch.ones(8), 1e-6), torch.zeros(2, 8))


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_add_norm_updates_the_residual_and_norms_the_sum(offset: float) -> None:
    x, residual, weight = torch.randn(6, 32), torch.randn(6, 32), torch.randn(32)
    total = x.double() + residual.double()
    result = add_rms_norm_torch(x, residual, weight, 1e-6, offset)
    torch.testing.assert_close(residual.double(), total, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result.double(), exact(total, weight, 1e-6, offset), rtol=1e-5, atol=1e-5)
