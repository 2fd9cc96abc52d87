"""Random numbers on the device: `seeds`' streams, a position of each of many at once."""

from __future__ import annotations

from torch import Tensor

from baton_kernels.sample_draw import shift_right
from baton_serving.sampling.seeds import GOLDEN, MIX1, MIX2, as_signed


def random_bits(keys: Tensor, positions: Tensor) -> Tensor:
    """Output number `positions` of the SplitMix64 streams that start at `keys`: int64 [rows], all 64 bits random."""
    z = keys + (positions + 1) * as_signed(GOLDEN)
    z = (z ^ shift_right(z, 30)) * as_signed(MIX1)
    z = (z ^ shift_right(z, 27)) * as_signed(MIX2)
    return z ^ shift_right(z, 31)
