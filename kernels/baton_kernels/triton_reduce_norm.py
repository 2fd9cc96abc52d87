"""All-reduce, residual addition and RMSNorm in one Triton kernel, for the few rows of decode steps on one host.

Every rank writes its row straight into an inbox in each peer's memory, sums what it was sent in rank order, and goes
on. A word of an inbox is two 16-bit floats and a mark that they are there, stored as one 64-bit value: no barrier and
no fence is needed, and a message costs one way over the link. Source of the idea: the "LL" protocol of NCCL.

A reader clears what it read. An inbox has two halves in turns: when a rank writes to a half again, it has received the
peer's next message, which the peer sent after it was done with this half.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from baton_kernels.triton_launch import overlaps, wait_then_release

_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _low(words, LIKE: tl.constexpr):
    return (words & 0xFFFF).to(tl.int16).to(LIKE, bitcast=True).to(tl.float32)


@triton.jit
def _high(words, LIKE: tl.constexpr):
    return ((words >> 16) & 0xFFFF).to(tl.int16).to(LIKE, bitcast=True).to(tl.float32)


@triton.jit
def _pair(low, high, LIKE: tl.constexpr):
    low_bits = low.to(LIKE).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return low_bits | (high.to(LIKE).to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def _reduce_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    inboxes_ptr,
    half_words,
    max_rows,
    eps,
    offset,
    LIKE: tl.constexpr,
    TURN: tl.constexpr,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """All pointers but the inboxes' are to int32 words of two values; an inbox is int64
    `[turns, ranks, max_rows, words]`."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < half_words
    weight = tl.load(weight_ptr + columns, mask=inside, other=0)
    if OVERLAP:
        wait_then_release()
    place = row * half_words + columns
    mine = tl.load(x_ptr + place, mask=inside, other=0)
    message = (mine.to(tl.int64) & 0xFFFFFFFF) | (1 << 32)
    for peer in tl.static_range(RANKS):
        if peer != RANK:
            inbox = tl.multiple_of(tl.load(inboxes_ptr + peer).to(tl.pointer_type(tl.int64)), 16)
            letter = inbox + (TURN * RANKS + RANK) * max_rows * half_words + place
            tl.store(letter, message, mask=inside, cache_modifier=".wt")
    residual = tl.load(residual_ptr + place, mask=inside, other=0)
    low = tl.zeros((BLOCK,), tl.float32)
    high = tl.zeros((BLOCK,), tl.float32)
    own = tl.multiple_of(tl.load(inboxes_ptr + RANK).to(tl.pointer_type(tl.int64)), 16)
    for peer in tl.static_range(RANKS):  # in one order on every rank, so that all get the same bits
        words = mine
        if peer != RANK:
            letter = own + (TURN * RANKS + peer) * max_rows * half_words + place
            found = tl.load(letter, mask=inside, other=1 << 32, volatile=True)
            while tl.min(found >> 32, axis=0) == 0:
                found = tl.load(letter, mask=inside, other=1 << 32, volatile=True)
            tl.store(letter, tl.zeros((BLOCK,), tl.int64), mask=inside)
            words = found.to(tl.int32)
        low += _low(words, LIKE)
        high += _high(words, LIKE)
    total = _pair(low + _low(residual, LIKE), high + _high(residual, LIKE), LIKE)
    tl.store(residual_ptr + place, total, mask=inside)
    low = _low(total, LIKE)
    high = _high(total, LIKE)
    scale = tl.rsqrt((tl.sum(low * low, axis=0) + tl.sum(high * high, axis=0)) / (2 * half_words) + eps)
    low *= scale * (_low(weight, LIKE) + offset)
    high *= scale * (_high(weight, LIKE) + offset)
    tl.store(out_ptr + place, _pair(low, high, LIKE), mask=inside)


class TritonReduceAddRmsNorm:
    """See `ReduceAddRmsNorm`. `inboxes` int64 `[ranks]` on the device are the addresses of all ranks' inboxes, int64
    `[2, ranks, max_rows, dim / 2]` each, zero at first and mapped into this process for as long as `keep` lives."""

    def __init__(self, inboxes: torch.Tensor, rank: int, max_rows: int, keep: object = None) -> None:
        self._keep = keep
        self._inboxes = inboxes
        self._rank = rank
        self.max_rows = max_rows

    @staticmethod
    def inbox_words(ranks: int, max_rows: int, dim: int) -> int:
        """int64 values of one inbox."""
        return 2 * ranks * max_rows * (dim // 2)

    def __call__(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, offset: float, turn: int
    ) -> torch.Tensor:
        rows, dim = x.shape
        out = torch.empty_like(x)
        if rows == 0:
            return out
        words, block = dim // 2, triton.next_power_of_2(dim // 2)
        overlap = overlaps(x.device)
        _reduce_norm_kernel[(rows,)](
            x.view(torch.int32),
            residual.view(torch.int32),
            weight.view(torch.int32),
            out.view(torch.int32),
            self._inboxes,
            words,
            self.max_rows,
            eps,
            offset,
            LIKE=_TYPES[x.dtype],
            TURN=turn,
            RANK=self._rank,
            RANKS=self._inboxes.shape[0],
            BLOCK=block,
            OVERLAP=overlap,
            num_warps=min(8, max(1, block // 256)),
            launch_pdl=overlap,
        )
        return out
