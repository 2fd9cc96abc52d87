"""Finds rows whose logits are not numbers, for `--enable-nan-detection`."""

from __future__ import annotations

import torch


def nan_rows(logits: torch.Tensor) -> list[int]:
    """Indices of the rows of `[n, vocab_size]` that hold a NaN. Waits for the device."""
    bad: list[int] = logits.isnan().any(dim=-1).nonzero().flatten().tolist()
    return bad
