"""Sampling in Triton: the integer weights and thresholds of the reference, by reductions over parts of rows.

Programs share a row: each handles a stretch of the vocabulary. A token's probability over the row's best is kept as the
bits of its float32, which order like integers (its key). A threshold is found digit by digit: a pass sums the mass at
and above seven candidates for the next three bits, stretch by stretch, and the next pass chooses among them. Nothing
waits for the host, so a CUDA graph may hold it all.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from baton_kernels.sample import DrawRows
from baton_kernels.triton_argmax import argmax_triton

_TILE = 512  # tokens a program looks at in one go
_STRETCH = 4096  # tokens of which the draw keeps one sum
_PROGRAMS = ((16, 64), (64, 16))  # for at most so many rows, so many programs a row
_FEWEST = 4
_LEAST = 87 << 23  # key of 2**-40: whatever is below has no weight
_DIGITS = 10  # of three bits: keys from _LEAST to 1.0 are 29 bits apart

# exp by parts: n * ln 2 is exact in the upper part for every n that occurs.
_LOG2E = tl.constexpr(1.4426950408889634)
_LN2_HIGH = tl.constexpr(0.693359375)
_LN2_LOW = tl.constexpr(-2.12194440e-4)
_BASE = tl.constexpr(_LEAST)


@triton.jit
def _weight(key):
    """Integer weight of a key: the probability over the best, times 2**40."""
    return (key.to(tl.float32, bitcast=True) * 1099511627776.0).to(tl.int64)


@triton.jit
def _key_kernel(
    logits_ptr, best_ptr, temperature_ptr, keys_ptr, vocab, logits_stride, PER_PROGRAM: tl.constexpr, TILE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + row)
    if temperature > 0.0:
        best = tl.load(best_ptr + row).to(tl.float32)
        for begin in range(0, PER_PROGRAM, TILE):
            at = tl.program_id(1) * PER_PROGRAM + begin + tl.arange(0, TILE)
            inside = at < vocab
            logits = tl.load(logits_ptr + row * logits_stride + at, mask=inside, other=-float("inf")).to(tl.float32)
            x = tl.maximum(tl.div_rn(logits - best, temperature), -80.0)
            n = tl.floor(x * _LOG2E + 0.5)
            rest = (x - n * _LN2_HIGH) - n * _LN2_LOW
            power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
            relative = tl.where(x > -80.0, tl.exp(rest) * power, 0.0)
            tl.store(keys_ptr + row * vocab + at, relative.to(tl.int32, bitcast=True), mask=inside)


@triton.jit(do_not_specialize=["digit", "rows"])
def _digit_kernel(
    keys_ptr,
    temperature_ptr,
    limit_ptr,
    floor_ptr,
    state_ptr,
    sums_ptr,
    threshold_ptr,
    vocab,
    rows,
    digit,
    DIGITS: tl.constexpr,
    COUNT: tl.constexpr,
    PROGRAMS: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
    TILE: tl.constexpr,
):
    """Choose the digit before `digit` by its sums, then sum for `digit`; past the last one, write the threshold.

    `state` int64 `[DIGITS + 1, 2, rows]` holds, per digit, the threshold's bits so far and the mass to reach; `sums`
    int64 `[2, rows, PROGRAMS, 8]` the mass at and above each candidate, of even and odd digits.
    """
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    eight = tl.arange(0, 8)
    limit = tl.load(limit_ptr + row)
    active = tl.load(temperature_ptr + row) > 0.0
    active = active & ((limit < vocab) if COUNT else (limit < 1.0))
    floor = tl.load(floor_ptr + row)
    prefix = tl.full((), 0, tl.int64)
    if active:
        if digit > 0:
            each = ((((digit - 1) % 2) * rows + row) * PROGRAMS + tl.arange(0, PROGRAMS)[:, None]) * 8
            found = tl.sum(tl.load(sums_ptr + each + eight[None, :]), axis=0)
            goal = tl.full((), 0, tl.int64)
            if digit == 1:
                total = tl.sum(tl.where(eight == 0, found, 0))
                if COUNT:
                    goal = limit.to(tl.int64)
                else:
                    goal = tl.ceil(total.to(tl.float64) * limit.to(tl.float64)).to(tl.int64)
                    goal = tl.minimum(tl.maximum(goal, 1), total)
            else:
                prefix = tl.load(state_ptr + 2 * (digit - 1) * rows + row)
                goal = tl.load(state_ptr + (2 * (digit - 1) + 1) * rows + row)
            chosen = tl.sum(((found >= goal) & (eight > 0)).to(tl.int64))
            prefix += chosen << (3 * (DIGITS - digit))
            if part == 0:
                tl.store(state_ptr + 2 * digit * rows + row, prefix)
                tl.store(state_ptr + (2 * digit + 1) * rows + row, goal)
        if digit < DIGITS:
            bounds = (prefix + _BASE).to(tl.int32) + (eight << (3 * (DIGITS - 1 - digit)))
            mass = tl.zeros((8, TILE), tl.int64)
            for begin in range(0, PER_PROGRAM, TILE):
                at = part * PER_PROGRAM + begin + tl.arange(0, TILE)
                key = tl.load(keys_ptr + row * vocab + at, mask=at < vocab, other=0)
                one = (key >= floor).to(tl.int64) if COUNT else tl.where(key >= floor, _weight(key), 0)
                mass += tl.where(key[None, :] >= bounds[:, None], one[None, :], 0)
            into = (((digit % 2) * rows + row) * PROGRAMS + part) * 8
            tl.store(sums_ptr + into + eight, tl.sum(mass, axis=1))
    if (digit == DIGITS) & (part == 0):
        tl.store(threshold_ptr + row, tl.maximum((prefix + _BASE).to(tl.int32), floor))


@triton.jit
def _sum_kernel(keys_ptr, threshold_ptr, sums_ptr, vocab, stretches, STRETCH: tl.constexpr, TILE: tl.constexpr):
    """Weight of each stretch's tokens from the threshold on."""
    row, stretch = tl.program_id(0).to(tl.int64), tl.program_id(1)
    threshold = tl.load(threshold_ptr + row)
    mass = tl.zeros((TILE,), tl.int64)
    for begin in range(0, STRETCH, TILE):
        at = stretch * STRETCH + begin + tl.arange(0, TILE)
        key = tl.load(keys_ptr + row * vocab + at, mask=at < vocab, other=0)
        mass += tl.where(key >= threshold, _weight(key), 0)
    tl.store(sums_ptr + row * stretches + stretch, tl.sum(mass))


@triton.jit
def _draw_kernel(
    keys_ptr,
    threshold_ptr,
    sums_ptr,
    bits_ptr,
    temperature_ptr,
    best_ptr,
    best_token_ptr,
    tokens_ptr,
    vocab,
    stretches,
    STRETCHES: tl.constexpr,
    STRETCH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(best_token_ptr + row)
    best = tl.load(best_ptr + row).to(tl.float32)
    if (tl.load(temperature_ptr + row) > 0.0) & (tl.abs(best) < float("inf")):
        each = tl.arange(0, STRETCHES)
        upto = tl.cumsum(tl.load(sums_ptr + row * stretches + each, mask=each < stretches, other=0), axis=0)
        total = tl.max(upto)
        # floor(u * total) for u = (upper 62 of bits) / 2**62, by products of 31-bit halves.
        bits = tl.load(bits_ptr + row)
        u1, u0 = (bits >> 33) & 0x7FFFFFFF, (bits >> 2) & 0x7FFFFFFF
        t1, t0 = total >> 31, total & 0x7FFFFFFF
        target = t1 * u1 + ((t1 * u0 + t0 * u1 + ((t0 * u0) >> 31)) >> 31)
        stretch = tl.minimum(tl.sum((upto <= target).to(tl.int32)), stretches - 1)
        before = tl.max(tl.where(each < stretch, upto, 0))
        at = stretch * STRETCH + tl.arange(0, STRETCH)
        key = tl.load(keys_ptr + row * vocab + at, mask=at < vocab, other=0)
        inner = tl.cumsum(tl.where(key >= tl.load(threshold_ptr + row), _weight(key), 0), axis=0)
        token = tl.minimum(stretch * STRETCH + tl.sum((inner <= target - before).to(tl.int32)), vocab - 1).to(tl.int64)
    tl.store(tokens_ptr + row, token)


def sample_triton(logits: torch.Tensor, rows: DrawRows) -> torch.Tensor:
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    count, vocab = logits.shape
    device, temperature = logits.device, rows.temperature.contiguous()
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=device)
    best_token = argmax_triton(logits)
    best = logits.gather(1, best_token.unsqueeze(1)).squeeze(1)
    search = _Search(logits, best, temperature)
    threshold = torch.full((count,), _LEAST, dtype=torch.int32, device=device)
    for limit in (rows.top_k, rows.top_p):
        if limit is not None:
            threshold = search.threshold(limit.contiguous(), threshold)
    if rows.min_p is not None:
        threshold = torch.maximum(threshold, rows.min_p.contiguous().view(torch.int32))
    stretches = triton.cdiv(vocab, _STRETCH)
    sums = torch.empty((count, stretches), dtype=torch.int64, device=device)
    _sum_kernel[(count, stretches)](
        search.keys, threshold, sums, vocab, stretches, STRETCH=_STRETCH, TILE=_TILE, num_warps=4
    )
    tokens = torch.empty(count, dtype=torch.int64, device=device)
    _draw_kernel[(count,)](
        search.keys,
        threshold,
        sums,
        rows.bits,
        temperature,
        best,
        best_token,
        tokens,
        vocab,
        stretches,
        STRETCHES=triton.next_power_of_2(stretches),
        STRETCH=_STRETCH,
        num_warps=8,
    )
    return tokens


class _Search:
    """Keys int32 `[rows, vocab]` of rows that are drawn, and thresholds among them."""

    def __init__(self, logits: torch.Tensor, best: torch.Tensor, temperature: torch.Tensor) -> None:
        self._rows, self._vocab = logits.shape
        self._temperature = temperature
        self._programs = next((few for most, few in _PROGRAMS if self._rows <= most), _FEWEST)
        self._each = triton.cdiv(triton.cdiv(self._vocab, self._programs), _TILE) * _TILE
        self.keys = torch.empty((self._rows, self._vocab), dtype=torch.int32, device=logits.device)
        _key_kernel[(self._rows, self._programs)](
            logits,
            best,
            temperature,
            self.keys,
            self._vocab,
            logits.stride(0),
            PER_PROGRAM=self._each,
            TILE=_TILE,
            num_warps=4,
        )

    def threshold(self, limit: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
        """Keys int32 `[rows]` from which on tokens stay: the `limit` best (int64), or those that hold `limit` of the
        mass (float32), each among those from the keys `floor` on."""
        rows, programs, device = self._rows, self._programs, self.keys.device
        state = torch.empty((_DIGITS + 1, 2, rows), dtype=torch.int64, device=device)
        sums = torch.empty((2, rows, programs, 8), dtype=torch.int64, device=device)
        found = torch.empty(rows, dtype=torch.int32, device=device)
        for digit in range(_DIGITS + 1):
            _digit_kernel[(rows, programs if digit < _DIGITS else 1)](
                self.keys,
                self._temperature,
                limit,
                floor,
                state,
                sums,
                found,
                self._vocab,
                rows,
                digit,
                DIGITS=_DIGITS,
                COUNT=not limit.is_floating_point(),
                PROGRAMS=programs,
                PER_PROGRAM=self._each,
                TILE=_TILE,
                num_warps=4,
            )
        return found
