"""Top-k, top-p and min-p as one threshold per row, found without sorting.

Order, as in transformers and vLLM: temperature, top-k, top-p on what top-k left (renormalised), min-p. Tokens exactly
as probable as the last one kept are kept too, so the result does not depend on an order among equals.
"""

from __future__ import annotations

import torch
from torch import Tensor

DIGIT_BITS = 10
DIGITS = 1 << DIGIT_BITS
SHIFTS = (2 * DIGIT_BITS, DIGIT_BITS, 0)  # float32 of [0, 1] has 30 bits that matter, as an ordered integer


def order_keys(relative: Tensor) -> Tensor:
    """int32 keys in the order of `relative`, contiguous float32 in [0, 1]: the bits of a float that is not negative."""
    return relative.view(torch.int32)


def top_k_threshold(keys: Tensor, top_k: Tensor) -> Tensor:
    """The k-th largest key of each row; `top_k` int64 [rows] in [1, vocab]."""
    return _threshold(keys, torch.ones_like(keys, dtype=torch.int64), top_k)


def top_p_threshold(keys: Tensor, weights: Tensor, top_p: Tensor) -> Tensor:
    """The largest threshold at and above which lies at least `top_p` of a row's weight.

    `weights` int64 like `keys` [rows, vocab]; `top_p` float32 [rows] in (0, 1].
    """
    total = weights.sum(dim=-1)
    target = (total.double() * top_p.double()).ceil().long().clamp(min=1)
    return _threshold(keys, weights, torch.minimum(target, total))


def min_p_threshold(min_p: Tensor) -> Tensor:
    """Keys of `min_p` float32 [rows]: probabilities are relative to the best already."""
    return min_p.contiguous().view(torch.int32).long()


def _threshold(keys: Tensor, mass: Tensor, target: Tensor) -> Tensor:
    """The largest t with sum(mass where keys >= t) >= target, per row: radix selection, three digits of ten bits."""
    rows = keys.shape[0]
    prefix = torch.zeros(rows, dtype=torch.int64, device=keys.device)
    missing = target
    for shift in SHIFTS:
        digit = keys >> shift
        inside = (digit >> DIGIT_BITS) == prefix.unsqueeze(1)
        histogram = torch.zeros((rows, DIGITS), dtype=torch.int64, device=keys.device)
        histogram.scatter_add_(1, (digit & (DIGITS - 1)).long(), mass * inside)
        at_or_above = histogram.flip(1).cumsum(1).flip(1)
        chosen = ((at_or_above >= missing.unsqueeze(1)).sum(1, keepdim=True) - 1).clamp_(min=0)
        missing = missing - (at_or_above.gather(1, chosen) - histogram.gather(1, chosen)).squeeze(1)
        prefix = (prefix << DIGIT_BITS) | chosen.squeeze(1)
    return prefix
