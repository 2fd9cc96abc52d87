"""One token per row, drawn from logits by temperature, top-k, top-p and min-p: the contract and its plain reference.

A row's draw depends on its logits and its own numbers alone, not on the rows beside it. Probabilities become integer
weights before they are summed, so sums do not depend on their order; implementations agree but for the rounding of
`exp`. Order, as in transformers and vLLM: temperature, top-k, top-p on what top-k left (renormalised), min-p. Tokens
exactly as probable as the last one kept are kept too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from baton_kernels import sample_filters
from baton_kernels.registry import TRITON_TYPES, Implementation, Needs, Op
from baton_kernels.sample_draw import draw, to_weights


@dataclass(frozen=True)
class DrawRows:
    """What rows are drawn by, `[rows]` each on the logits' device.

    `temperature` float32, where 0 takes the first of the largest logits; `bits` int64, all 64 of them random. Filters
    are None where no row has them: `top_k` int64 in [1, vocab], `top_p` float32 in (0, 1], `min_p` float32 in [0, 1].
    """

    temperature: torch.Tensor
    bits: torch.Tensor
    top_k: torch.Tensor | None = None
    top_p: torch.Tensor | None = None
    min_p: torch.Tensor | None = None


class Sample(Protocol):
    def __call__(self, logits: torch.Tensor, rows: DrawRows) -> torch.Tensor:
        """Tokens int64 `[rows]` for `logits` `[rows, vocab]` of any float type, which are left as they are.

        A row whose largest logit is not finite gets the first such. Every row gets a token in range."""


def sample_torch(logits: torch.Tensor, rows: DrawRows) -> torch.Tensor:
    logits = logits.float()
    best, best_token = logits.max(dim=-1)
    greedy = (rows.temperature == 0.0) | ~best.isfinite()
    divisor = torch.where(greedy, 1.0, rows.temperature)
    relative = ((logits - best.unsqueeze(1)) / divisor.unsqueeze(1)).exp_()
    drawn = draw(_filtered_weights(relative, rows), rows.bits).clamp_(max=logits.shape[1] - 1)
    return torch.where(greedy, best_token, drawn)


def _filtered_weights(relative: torch.Tensor, rows: DrawRows) -> torch.Tensor:
    """Integer weights of the tokens that top-k, top-p and min-p leave, 0 for the others. Overwrites `relative`."""
    vocab = relative.shape[1]
    filtering = rows.top_k is not None or rows.top_p is not None or rows.min_p is not None
    keys = sample_filters.order_keys(relative.clone()) if filtering else None
    weights = to_weights(relative)
    if keys is None:
        return weights
    kept = weights[:, :vocab]
    if rows.top_k is not None:
        kept.mul_(keys >= sample_filters.top_k_threshold(keys, rows.top_k).unsqueeze(1))
    if rows.top_p is not None:
        kept.mul_(keys >= sample_filters.top_p_threshold(keys, kept, rows.top_p).unsqueeze(1))
    if rows.min_p is not None:
        kept.mul_(keys >= sample_filters.min_p_threshold(rows.min_p).unsqueeze(1))
    return weights


SAMPLE: Op[Sample] = Op(
    "sample",
    (
        Implementation(
            "triton",
            "baton_kernels.triton_sample:sample_triton",
            Needs(device="cuda", capability=(8, 0), dtypes=TRITON_TYPES, packages=("triton",)),
        ),
        Implementation("torch", "baton_kernels.sample:sample_torch"),
    ),
)
