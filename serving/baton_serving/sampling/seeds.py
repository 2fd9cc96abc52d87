"""Seeds on the host: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) in plain integers.

The random number of a token is output number `position` of the SplitMix64 stream whose start is `stream_key(seed)`;
`random_bits` computes it on the device.
"""

from __future__ import annotations

MASK64 = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio, made odd: the stream's increment
MIX1 = 0xBF58476D1CE4E5B9
MIX2 = 0x94D049BB133111EB


def mix64(value: int) -> int:
    """SplitMix64's output function: a bijection of 64-bit unsigned integers."""
    z = value & MASK64
    z = ((z ^ (z >> 30)) * MIX1) & MASK64
    z = ((z ^ (z >> 27)) * MIX2) & MASK64
    return z ^ (z >> 31)


def as_signed(value: int) -> int:
    """The signed 64-bit integer with the same bits: tensors have no unsigned arithmetic."""
    value &= MASK64
    return value - (1 << 64) if value >> 63 else value


def stream_key(seed: int) -> int:
    """Start of the stream of `seed`, as a signed 64-bit integer. Mixed, so that neighbouring seeds share no outputs."""
    return as_signed(mix64(seed + GOLDEN))


def choice_seed(seed: int, index: int) -> int:
    """Seed of choice `index` of a request with n > 1. Choice 0 keeps the request's own seed."""
    return seed if index == 0 else as_signed(mix64(mix64(seed) + index * GOLDEN))
