"""Draw one token per row by inverse transform in integers.

Probabilities become 64-bit integer weights before they are summed. Integer sums do not depend on their order, so a
row's draw is the same whatever rows stand beside it, however the device cuts its reductions.
"""

from __future__ import annotations

import torch
from torch import Tensor

# A weight is probability / best probability * 2**40: below 2**-40 of the best a token is never drawn (at most 2.4e-7 of
# the mass at a vocabulary of 256k), and sums stay under 2**58.
WEIGHT_SCALE = float(1 << 40)
BLOCK = 512


def shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift: int64's own `>>` copies the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def to_weights(relative: Tensor) -> Tensor:
    """Integer weights of `relative` [rows, vocab], float32 probabilities over the row's best. Overwrites `relative`.

    Returns int64 [rows, width]: width is the vocabulary rounded up to whole blocks, the rest is 0.
    """
    rows, vocab = relative.shape
    width = -(-vocab // BLOCK) * BLOCK
    weights = torch.empty((rows, width), dtype=torch.int64, device=relative.device)
    weights[:, vocab:] = 0
    weights[:, :vocab].copy_(relative.mul_(WEIGHT_SCALE))
    return weights


def draw(weights: Tensor, bits: Tensor) -> Tensor:
    """Column of `weights` drawn for each row, with probability weight / sum of the row.

    `weights` is int64 [rows, whole blocks], not negative, row sums below 2**58; `bits` int64 [rows]. Returns
    int64 [rows].
    Whatever the weights are, a column in range comes back; of a row without weight it means nothing.
    """
    rows, width = weights.shape
    blocks = weights.view(rows, width // BLOCK, BLOCK)
    sums = blocks.sum(dim=-1)
    upto = sums.cumsum(dim=-1)
    target = _scale(bits, upto[:, -1])
    block = _first_above(upto, target)
    at = block.unsqueeze(1)
    rest = target - (upto.gather(1, at) - sums.gather(1, at)).squeeze(1)
    inner = blocks.gather(1, at.unsqueeze(2).expand(rows, 1, BLOCK)).squeeze(1).cumsum(dim=-1)
    return block * BLOCK + _first_above(inner, rest)


def _scale(bits: Tensor, total: Tensor) -> Tensor:
    """floor(u * total) for the uniform u = (upper 62 of `bits`) / 2**62, exactly, by products of 31-bit halves."""
    half = (1 << 31) - 1
    u1, u0 = shift_right(bits, 33), shift_right(bits, 2) & half
    t1, t0 = total >> 31, total & half
    return t1 * u1 + ((t1 * u0 + t0 * u1 + ((t0 * u0) >> 31)) >> 31)


def _first_above(upto: Tensor, target: Tensor) -> Tensor:
    """First column of the running sums `upto` [rows, n] that is greater than `target` [rows]."""
    return (upto <= target.unsqueeze(1)).sum(dim=1).clamp_(max=upto.shape[1] - 1)
