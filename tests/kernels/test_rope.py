from __future__ import annotations

import torch

from baton_kernels.rope import rope_table, rope_torch


def rotated(x: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
    """Each pair (i, i + half) as a complex number times e^(i * angle), in float64."""
    half = len(inv_freq)
    angles = positions.double()[:, None, None] * inv_freq.double()
    turned = torch.complex(x[..., :half].double(), x[..., half : 2 * half].double()) * torch.exp(1j * angles)
    return torch.cat((turned.real, turned.imag, x[..., 2 * half :].double()), dim=-1)


def test_rotation_matches_complex_multiplication_in_float64() -> None:
    inv_freq = 10000.0 ** -(torch.arange(0, 16, 2) / 16)
    q, k, positions = torch.randn(5, 4, 16), torch.randn(5, 2, 16), torch.tensor([0, 1, 17, 3, 63])
    expected = rotated(q, positions, inv_freq), rotated(k, positions, inv_freq)
    rope_torch(q, k, positions, rope_table(inv_freq, 64))
    torch.testing.assert_close(q.double(), expected[0], rtol=0, atol=2e-5)
    torch.testing.assert_close(k.double(), expected[1], rtol=0, atol=2e-5)


def test_values_past_the_rotary_dimension_are_kept() -> None:
    inv_freq = torch.tensor([1.0, 0.1])
    q, k, positions = torch.randn(3, 2, 10), torch.randn(3, 1, 10), torch.tensor([5, 6, 7])
    before = q.clone()
    expected = rotated(q, positions, inv_freq)
    rope_torch(q, k, positions, rope_table(inv_freq, 8))
    assert torch.equal(q[..., 4:], before[..., 4:])
    torch.testing.assert_close(q.double(), expected, rtol=0, atol=1e-5)


def test_strided_views_of_a_fused_projection_are_rotated_in_place() -> None:
    inv_freq = torch.tensor([1.0, 0.25, 0.05])
    fused = torch.randn(4, 3 * 6)
    q, k = fused[:, :12].view(4, 2, 6), fused[:, 12:].view(4, 1, 6)
    positions = torch.tensor([9, 2, 2, 0])
    expected = torch.cat([rotated(x, positions, inv_freq).flatten(1) for x in (q, k)], dim=1)
    rope_torch(q, k, positions, rope_table(inv_freq, 10))
    torch.testing.assert_close(fused.double(), expected, rtol=0, atol=1e-5)


def test_amplitude_scales_the_rotated_part() -> None:
    inv_freq = torch.tensor([1.0, 0.5])
    q, k, positions = torch.randn(2, 1, 4), torch.randn(2, 1, 4), torch.tensor([1, 2])
    expected = 1.5 * rotated(q, positions, inv_freq)
    rope_torch(q, k, positions, rope_table(inv_freq, 3, amplitude=1.5))
    torch.testing.assert_close(q.double(), expected, rtol=0, atol=1e-5)


def test_half_precision_is_rounded_once() -> None:
    inv_freq = torch.tensor([1.0, 0.5])
    q = torch.randn(2, 3, 4).bfloat16()
    k, positions = torch.randn(2, 1, 4).bfloat16(), torch.tensor([40, 41])
    expected = rotated(q, positions, inv_freq)
    rope_torch(q, k, positions, rope_table(inv_freq, 64))
    torch.testing.assert_close(q.double(), expected, rtol=2**-8, atol=1e-4)
