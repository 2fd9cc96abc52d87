"""The first largest of each row in Triton: programs share a row, and a second kernel chooses among what they found."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from baton_kernels.triton_launch import overlaps, wait_then_release

_TILE = 1024  # logits a program looks at in one go
_PROGRAMS = 2048  # aimed at, which keeps every multiprocessor loading
_MOST = 64  # programs a row
_LEAST = tl.constexpr(-(2**31))  # below the key of any number


@triton.jit
def _order_key(x):
    """An int32 that orders as x does, NaN above all; both zeros are equal."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(x != x, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@triton.jit
def _first(keys, at):
    """The largest key, and the least `at` that has it."""
    top = tl.max(keys, axis=0)
    return top, tl.min(tl.where(keys == top, at, 0x7FFFFFFF), axis=0)


@triton.jit
def _part_kernel(
    logits_ptr,
    tops_ptr,
    places_ptr,
    vocab,
    stride,
    per_program,
    TILE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        wait_then_release()
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    best = tl.full((TILE,), _LEAST, tl.int32)
    place = tl.zeros((TILE,), tl.int32)
    for begin in range(0, per_program, TILE):
        at = part * per_program + begin + tl.arange(0, TILE)
        inside = at < vocab
        logits = tl.load(logits_ptr + row * stride + at, mask=inside, other=0.0).to(tl.float32)
        keys = tl.where(inside, _order_key(logits), _LEAST)
        place = tl.where(keys > best, at, place)
        best = tl.maximum(keys, best)
    top, first = _first(best, place)
    into = row * tl.num_programs(1) + part
    tl.store(tops_ptr + into, top)
    tl.store(places_ptr + into, first)


@triton.jit(do_not_specialize=["parts"])
def _row_kernel(tops_ptr, places_ptr, out_ptr, parts, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    if OVERLAP:
        wait_then_release()
    row = tl.program_id(0)
    part = tl.arange(0, BLOCK)
    inside = part < parts
    tops = tl.load(tops_ptr + row * parts + part, mask=inside, other=_LEAST)
    places = tl.load(places_ptr + row * parts + part, mask=inside, other=0x7FFFFFFF)
    _, first = _first(tops, places)
    tl.store(out_ptr + row, first.to(tl.int64))


def argmax_triton(logits: torch.Tensor) -> torch.Tensor:
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, vocab = logits.shape
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows == 0:
        return out
    wanted = min(_MOST, max(1, _PROGRAMS // rows))
    each = triton.cdiv(triton.cdiv(vocab, wanted), _TILE) * _TILE
    parts, overlap = triton.cdiv(vocab, each), overlaps(logits.device)
    tops, places = torch.empty((2, rows, parts), dtype=torch.int32, device=logits.device)
    _part_kernel[(rows, parts)](
        logits,
        tops,
        places,
        vocab,
        logits.stride(0),
        each,
        TILE=_TILE,
        OVERLAP=overlap,
        num_warps=4,
        launch_pdl=overlap,
    )
    _row_kernel[(rows,)](
        tops,
        places,
        out,
        parts,
        BLOCK=_MOST,
        OVERLAP=overlap,
        num_warps=1,
        launch_pdl=overlap,
    )
    return out
