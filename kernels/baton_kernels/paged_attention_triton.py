"""Decode attention over strided pages in Triton, split over the keys ("flash decoding"), planned on the device.

How a step is cut follows from the rows' lengths, which a small kernel reads on the device: nothing of a plan depends
on the host, so a CUDA graph that holds plan and layers replays for any lengths. One program attends the query heads
of one kv-head to one stretch of one row; the last program of a row to finish combines what all of them found. Source of
the split: Dao et al. 2023, "Flash-Decoding for long-context inference".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import triton
import triton.language as tl

from baton_kernels.kv_scale import UNSCALED, KVScale
from baton_kernels.paged_attention import AttentionSpec, PagedRows
from baton_kernels.registry import KernelUnavailable
from baton_kernels.triton_launch import dot_type, fetch_ahead, holds_8_bit_floats, overlaps, wait_then_release

_TILE = 64  # keys per iteration
_STAGES = 2  # tiles under way in a program, in 16-bit types
_STAGES_8 = 6  # of 8-bit floats: half the bytes a tile, so more of them must be under way
_JOINED = 32  # partial results of query heads that are added up at a time


@dataclass(frozen=True)
class Cut:
    """How steps of up to `rows` rows are cut: `programs` of so many warps are aimed at per multiprocessor, and the
    first `ahead` tiles of a program are fetched into the L2 early. `registers` are a thread's at most."""

    rows: float
    programs: int
    warps: int
    ahead: int
    registers: int | None = None


# Measured on an H200. Many programs a row pay while there are few rows. With 128 registers four programs are at work at
# a time, so that 64 rows of 8 heads fit on the chip at once.
CUTS = (Cut(16, 3, 2, 0), Cut(47, 6, 2, 0), Cut(191, 4, 4, 2, registers=128), Cut(math.inf, 4, 2, 0))
CUTS_8 = (Cut(47, 2, 2, 0), Cut(191, 2, 4, 0), Cut(math.inf, 2, 2, 0))


@triton.jit
def _plan_kernel(
    lens_ptr,
    starts_ptr,
    items_ptr,
    rows,
    heads,
    programs,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """starts[r] is the first stretch of row r, starts[rows] their number; items[i] is row, first tile, end, alone."""
    row = tl.arange(0, BLOCK)
    inside = row < rows
    lens = tl.load(lens_ptr + row, mask=inside, other=0)
    first = tl.zeros((BLOCK,), tl.int32)
    if WINDOW > 0:
        first = tl.maximum(lens - WINDOW, 0) // TILE
    end = (lens + TILE - 1) // TILE
    tiles = end - first
    longest = tl.maximum((tl.sum(tiles, axis=0) * heads + programs - 1) // programs, 1)
    splits = (tiles + longest - 1) // longest
    stretch = (tiles + splits - 1) // tl.maximum(splits, 1)
    ends = tl.cumsum(splits, axis=0)
    tl.store(starts_ptr, 0)
    tl.store(starts_ptr + 1 + row, ends, mask=inside)
    for split in range(tl.max(splits, axis=0)):
        here = split < splits
        item = items_ptr + (ends - splits + split) * 4
        begin = first + split * stretch
        tl.store(item, row, mask=here)
        tl.store(item + 1, begin, mask=here)
        tl.store(item + 2, tl.minimum(begin + stretch, end), mask=here)
        tl.store(item + 3, (splits == 1).to(tl.int32), mask=here)


@triton.jit
def _join(
    partial_ptr,
    lse_ptr,
    out_ptr,
    row,
    head,
    start,
    stop,
    GROUP: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The row's result for the query heads of a kv-head, from its stretches `start` to `stop`, BLOCK at a time."""
    q_heads = tl.num_programs(1) * GROUP
    groups: tl.constexpr = triton.next_power_of_2(GROUP)
    heads = tl.arange(0, groups)
    lines = head * GROUP + heads
    here = heads < GROUP
    dims = tl.arange(0, BLOCK_V)
    best = tl.full((groups,), float("-inf"), tl.float32)
    mass = tl.zeros((groups,), tl.float32)
    total = tl.zeros((groups, BLOCK_V), tl.float32)
    for first in range(start, stop, BLOCK):
        items = first + tl.arange(0, BLOCK)
        inside = (items < stop)[:, None] & here[None, :]
        place = items[:, None].to(tl.int64) * q_heads + lines[None, :]
        # Past the L1, which may hold what was there before.
        lse = tl.load(lse_ptr + place, mask=inside, other=float("-inf"), cache_modifier=".cg")
        cells = place[:, :, None] * V_DIM + dims[None, None, :]
        whole = inside[:, :, None] & (dims < V_DIM)[None, None, :]
        parts = tl.load(partial_ptr + cells, mask=whole, other=0.0, cache_modifier=".cg")
        higher = tl.maximum(best, tl.max(lse, axis=0))
        higher = tl.where(here, higher, 0.0)
        weights = tl.exp2(lse - higher[None, :])
        keep = tl.exp2(best - higher)
        mass = mass * keep + tl.sum(weights, axis=0)
        total = total * keep[:, None] + tl.sum(parts * weights[:, :, None], axis=0)
        best = higher
    place = out_ptr + (row.to(tl.int64) * q_heads + lines[:, None]) * V_DIM + dims[None, :]
    result = total / tl.where(here, mass, 1.0)[:, None]
    tl.store(place, result.to(out_ptr.dtype.element_ty), mask=here[:, None] & (dims < V_DIM)[None, :])


@triton.jit
def _stretch_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    partial_ptr,
    lse_ptr,
    table_ptr,
    lens_ptr,
    starts_ptr,
    items_ptr,
    finished_ptr,
    q_row_stride,
    q_head_stride,
    k_page_stride,
    k_head_stride,
    k_slot_stride,
    v_page_stride,
    v_head_stride,
    v_slot_stride,
    table_stride,
    scale,
    v_scale,
    softcap,
    GROUP: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    DOT_TYPE: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK_JOIN: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    # The plan, lengths and page tables are older than the kernel before, and so is what most of the pages hold: of that
    # the first tiles are on their way before this step's tokens are written.
    item = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.load(items_ptr + item * 4)
    begin = tl.load(items_ptr + item * 4 + 1)
    end = tl.load(items_ptr + item * 4 + 2)
    alone = tl.load(items_ptr + item * 4 + 3)
    k_head = k_ptr + head.to(tl.int64) * k_head_stride
    v_head = v_ptr + head.to(tl.int64) * v_head_stride
    line = table_ptr + row.to(tl.int64) * table_stride
    if OVERLAP:
        for early in tl.static_range(AHEAD):
            if begin + early < end:
                early_page = tl.load(line + (begin + early) * TILE // PAGE).to(tl.int64)
                early_slots = (begin + early) * TILE % PAGE + tl.arange(0, TILE)
                fetch_ahead(k_head + early_page * k_page_stride + early_slots * k_slot_stride, K_DIM)
                fetch_ahead(v_head + early_page * v_page_stride + early_slots * v_slot_stride, V_DIM)
        wait_then_release()
    if begin < end:  # more programs are launched than a step may have stretches
        kv_len = tl.load(lens_ptr + row)
        heads = tl.arange(0, BLOCK_G)
        k_dims = tl.arange(0, BLOCK_K)
        v_dims = tl.arange(0, BLOCK_V)
        q_place = q_ptr + row.to(tl.int64) * q_row_stride + (head * GROUP + heads[:, None]) * q_head_stride + k_dims
        q = tl.load(q_place, mask=(heads[:, None] < GROUP) & (k_dims < K_DIM), other=0.0)
        if tl.float16 == DOT_TYPE:
            q = tl.clamp(q.to(tl.float32), -65504.0, 65504.0)
        q = q.to(DOT_TYPE)
        best = tl.full((BLOCK_G,), float("-inf"), tl.float32)
        mass = tl.zeros((BLOCK_G,), tl.float32)
        total = tl.zeros((BLOCK_G, BLOCK_V), tl.float32)
        for tile in tl.range(begin, end, num_stages=STAGES):
            positions = tile * TILE + tl.arange(0, TILE)
            seen = positions < kv_len
            if WINDOW > 0:
                seen = seen & (positions >= kv_len - WINDOW)
            if PAGE % TILE == 0:
                page = tl.load(line + tile * TILE // PAGE).to(tl.int64)
                slots = tile * TILE % PAGE + tl.arange(0, TILE)
                k_place = k_head + page * k_page_stride + slots[:, None] * k_slot_stride + k_dims
                v_place = v_head + page * v_page_stride + slots[:, None] * v_slot_stride + v_dims
            else:
                pages = tl.load(line + positions // PAGE, mask=seen, other=0).to(tl.int64)
                slots = positions % PAGE
                k_place = k_head + (pages * k_page_stride + slots * k_slot_stride)[:, None] + k_dims
                v_place = v_head + (pages * v_page_stride + slots * v_slot_stride)[:, None] + v_dims
            k = tl.load(k_place, mask=seen[:, None] & (k_dims < K_DIM), other=0.0).to(DOT_TYPE)
            v = tl.load(v_place, mask=seen[:, None] & (v_dims < V_DIM), other=0.0).to(DOT_TYPE)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            if SOFTCAP:
                # tanh(z) = 1 - 2 / (1 + exp(2z))
                scores = softcap * (1.0 - 2.0 / (1.0 + tl.exp(2.0 * scores / softcap)))
            scores = tl.where(seen[None, :], scores * 1.4426950408889634, float("-inf"))
            higher = tl.maximum(best, tl.max(scores, axis=1))
            weights = tl.exp2(scores - higher[:, None])
            keep = tl.exp2(best - higher)
            mass = mass * keep + tl.sum(weights, axis=1)
            total = total * keep[:, None] + tl.dot(weights.to(DOT_TYPE), v, input_precision=PRECISION)
            best = higher
        result = total / mass[:, None] * v_scale
        lines = head * GROUP + heads
        here = heads < GROUP
        inside = here[:, None] & (v_dims < V_DIM)
        q_heads = tl.num_programs(1) * GROUP
        if alone == 1:
            place = out_ptr + (row.to(tl.int64) * q_heads + lines[:, None]) * V_DIM + v_dims
            tl.store(place, result.to(out_ptr.dtype.element_ty), mask=inside)
        else:
            partial = partial_ptr + (item.to(tl.int64) * q_heads + lines[:, None]) * V_DIM + v_dims
            tl.store(partial, result, mask=inside)
            tl.store(lse_ptr + item * q_heads + lines, best + tl.log2(mass), mask=here)
            tl.debug_barrier()  # all of the program's stores, before one thread tells of them
            finished = finished_ptr + row * tl.num_programs(1) + head
            start = tl.load(starts_ptr + row)
            stop = tl.load(starts_ptr + row + 1)
            if tl.atomic_add(finished, 1, sem="acq_rel") == stop - start - 1:
                tl.store(finished, 0)
                _join(partial_ptr, lse_ptr, out_ptr, row, head, start, stop, GROUP, V_DIM, BLOCK_V, BLOCK_JOIN)


class TritonDecodeAttention:
    """Rows of one new token; what it plans may be captured in a CUDA graph and replayed for other lengths."""

    capturable = True

    def __init__(self, spec: AttentionSpec) -> None:
        self._spec = spec
        on_gpu = spec.device.type == "cuda"
        if spec.kv_dtype.itemsize == 1 and on_gpu and not holds_8_bit_floats(spec.device):
            raise KernelUnavailable(f"reads pages of {spec.kv_dtype} on GPUs of compute capability 8.9 and later only")
        self._multiprocessors = torch.cuda.get_device_properties(spec.device).multi_processor_count if on_gpu else 8

    def plan(self, rows: PagedRows) -> _TritonPlan:
        spec, device = self._spec, rows.page_table.device
        count = rows.page_table.shape[0]
        lens = rows.device_lens
        if lens is None:
            lens = torch.tensor(rows.kv_lens, dtype=torch.int32)
            lens = lens.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else lens
        cut = next(cut for cut in (CUTS_8 if spec.kv_dtype.itemsize == 1 else CUTS) if count <= cut.rows)
        programs = self._multiprocessors * cut.programs
        stretches = count + programs // spec.kv_heads + 1
        starts = torch.empty(count + 1, dtype=torch.int32, device=device)
        items = torch.zeros((stretches, 4), dtype=torch.int32, device=device)
        _plan_kernel[(1,)](
            lens,
            starts,
            items,
            count,
            spec.kv_heads,
            programs,
            WINDOW=spec.window or 0,
            TILE=_TILE,
            BLOCK=triton.next_power_of_2(count),
        )
        # After the plan: with a kernel between them, layers may read it before they wait for the kernel before them.
        finished = torch.zeros((count, spec.kv_heads), dtype=torch.int32, device=device)
        partial = torch.empty((stretches, spec.q_heads, spec.v_dim), dtype=torch.float32, device=device)
        lse = torch.empty((stretches, spec.q_heads), dtype=torch.float32, device=device)
        return _TritonPlan(spec, cut, rows.page_table, lens, starts, items, finished, partial, lse)


def _stages(q: torch.Tensor, pages: torch.Tensor) -> int:
    if q.element_size() > 2:
        return 1
    return _STAGES_8 if pages.element_size() == 1 else _STAGES


@dataclass(frozen=True)
class _TritonPlan:
    """`starts` and `items` as `_plan_kernel` wrote them; `finished` counts stretches per row and kv-head and is zero
    between two layers; `partial` and `lse` are per stretch and query head."""

    reads_new: ClassVar[bool] = False
    spec: AttentionSpec
    cut: Cut
    table: torch.Tensor
    lens: torch.Tensor
    starts: torch.Tensor
    items: torch.Tensor
    finished: torch.Tensor
    partial: torch.Tensor
    lse: torch.Tensor

    def run(
        self, q: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor, scale: KVScale = UNSCALED
    ) -> torch.Tensor:
        spec = self.spec
        group, overlap = spec.q_heads // spec.kv_heads, overlaps(q.device)
        out = torch.empty((self.table.shape[0], spec.q_heads, spec.v_dim), dtype=q.dtype, device=q.device)
        _stretch_kernel[(self.items.shape[0], spec.kv_heads)](
            q,
            k_pages,
            v_pages,
            out,
            self.partial,
            self.lse,
            self.table,
            self.lens,
            self.starts,
            self.items,
            self.finished,
            q.stride(0),
            q.stride(1),
            *k_pages.stride()[:3],
            *v_pages.stride()[:3],
            self.table.stride(0),
            spec.scale * scale.k,
            scale.v,
            spec.softcap or 1.0,
            GROUP=group,
            K_DIM=spec.k_dim,
            V_DIM=spec.v_dim,
            PAGE=spec.page_size,
            WINDOW=spec.window or 0,
            SOFTCAP=spec.softcap is not None,
            TILE=_TILE,
            BLOCK_G=max(16, triton.next_power_of_2(group)),
            BLOCK_K=max(16, triton.next_power_of_2(spec.k_dim)),
            BLOCK_V=max(16, triton.next_power_of_2(spec.v_dim)),
            STAGES=_stages(q, k_pages),
            PRECISION="ieee",
            DOT_TYPE=dot_type(q, k_pages),
            AHEAD=self.cut.ahead if spec.page_size % _TILE == 0 else 0,
            BLOCK_JOIN=max(1, _JOINED // triton.next_power_of_2(group)),
            OVERLAP=overlap,
            num_warps=self.cut.warps,
            maxnreg=self.cut.registers,
            launch_pdl=overlap,
        )
        return out
