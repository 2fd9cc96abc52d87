"""Attention of rows of any number of new tokens in Triton, planned on the device: for CUDA graphs, and to the bit.

A program attends a block of queries, with all query heads of one kv-head, to one or more stretches of keys. Every
stretch is summed up by itself and then joined to those before it, always in this order and by the same operations.
So a token's result depends on its own row alone: not on the other rows, nor on how a prompt was cut into chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import triton
import triton.language as tl

from baton_kernels.extend_plan import ExtendItems, plan_items
from baton_kernels.kv_scale import UNSCALED, KVScale
from baton_kernels.paged_attention import AttentionSpec, PagedRows
from baton_kernels.registry import KernelUnavailable
from baton_kernels.triton_launch import dot_type, holds_8_bit_floats, overlaps, wait_then_release

_TILE = 64  # keys per iteration
_STRETCH = 16  # tiles
_LINES = 64  # queries times query heads of a kv-head, per program: the least that Hopper's tensor cores take
_PROGRAMS_PER_SM = 4  # aimed at when blocks are split


@triton.jit
def _join(total, best, mass, part, part_best, part_mass):
    """A stretch joined to those before it. Fused operations are spelled out: both kernels must round alike."""
    higher = tl.maximum(best, part_best)
    base = tl.where(higher == float("-inf"), 0.0, higher)
    keep = tl.exp2(best - base)
    add = tl.exp2(part_best - base)
    mass = tl.fma(mass, keep, part_mass * add)
    total = tl.fma(total, tl.broadcast_to(keep[:, None], total.shape), part * add[:, None])
    return total, higher, mass


@triton.jit
def _block_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    partial_ptr,
    best_ptr,
    mass_ptr,
    table_ptr,
    blocks_ptr,
    items_ptr,
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
    BLOCK_G: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    TILE: tl.constexpr,
    STRETCH: tl.constexpr,
    LINES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    DOT_TYPE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        wait_then_release()
    item = tl.program_id(0)
    head = tl.program_id(1)
    block = tl.load(items_ptr + item * 4)
    begin = tl.load(items_ptr + item * 4 + 1)
    end = tl.load(items_ptr + item * 4 + 2)
    alone = tl.load(items_ptr + item * 4 + 3)
    if begin < end:  # more programs are launched than a step may have items
        row = tl.load(blocks_ptr + block * 4)
        token = tl.load(blocks_ptr + block * 4 + 1)
        count = tl.load(blocks_ptr + block * 4 + 2)
        position = tl.load(blocks_ptr + block * 4 + 3)
        line = tl.arange(0, LINES)
        query = line // BLOCK_G
        of_group = line % BLOCK_G
        here = (query < count) & (of_group < GROUP)
        k_dims = tl.arange(0, BLOCK_K)
        v_dims = tl.arange(0, BLOCK_V)
        q_place = q_ptr + (token + query).to(tl.int64)[:, None] * q_row_stride
        q_place += (head * GROUP + of_group)[:, None] * q_head_stride + k_dims
        q = tl.load(q_place, mask=here[:, None] & (k_dims < K_DIM), other=0.0)
        if tl.float16 == DOT_TYPE:
            q = tl.clamp(q.to(tl.float32), -65504.0, 65504.0)
        q = q.to(DOT_TYPE)
        last = position + count  # end of what any query of the block sees
        first_tile = 0
        if WINDOW > 0:
            first_tile = tl.maximum(position - WINDOW + 1, 0) // TILE
        best = tl.full((LINES,), float("-inf"), tl.float32)
        mass = tl.zeros((LINES,), tl.float32)
        total = tl.zeros((LINES, BLOCK_V), tl.float32)
        k_head = k_ptr + head.to(tl.int64) * k_head_stride
        v_head = v_ptr + head.to(tl.int64) * v_head_stride
        table = table_ptr + row.to(tl.int64) * table_stride
        for stretch in range(begin, end):
            part_best = tl.full((LINES,), float("-inf"), tl.float32)
            part_mass = tl.zeros((LINES,), tl.float32)
            part = tl.zeros((LINES, BLOCK_V), tl.float32)
            first = tl.maximum(stretch * STRETCH, first_tile)
            beyond = tl.minimum((stretch + 1) * STRETCH, (last + TILE - 1) // TILE)
            for tile in tl.range(first, beyond, num_stages=STAGES):
                positions = tile * TILE + tl.arange(0, TILE)
                there = positions < last
                if PAGE % TILE == 0:
                    page = tl.load(table + tile * TILE // PAGE).to(tl.int64)
                    slots = tile * TILE % PAGE + tl.arange(0, TILE)
                    k_place = k_head + page * k_page_stride + slots[:, None] * k_slot_stride + k_dims
                    v_place = v_head + page * v_page_stride + slots[:, None] * v_slot_stride + v_dims
                else:
                    pages = tl.load(table + positions // PAGE, mask=there, other=0).to(tl.int64)
                    slots = positions % PAGE
                    k_place = k_head + (pages * k_page_stride + slots * k_slot_stride)[:, None] + k_dims
                    v_place = v_head + (pages * v_page_stride + slots * v_slot_stride)[:, None] + v_dims
                k = tl.load(k_place, mask=there[:, None] & (k_dims < K_DIM), other=0.0).to(DOT_TYPE)
                v = tl.load(v_place, mask=there[:, None] & (v_dims < V_DIM), other=0.0).to(DOT_TYPE)
                scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
                if SOFTCAP:
                    # tanh(z) = 1 - 2 / (1 + exp(2z))
                    scores = softcap * (1.0 - 2.0 / (1.0 + tl.exp(2.0 * scores / softcap)))
                seen = positions[None, :] <= (position + query)[:, None]
                if WINDOW > 0:
                    seen = seen & (positions[None, :] > (position + query - WINDOW)[:, None])
                scores = tl.where(seen, scores * 1.4426950408889634, float("-inf"))
                higher = tl.maximum(part_best, tl.max(scores, axis=1))
                base = tl.where(higher == float("-inf"), 0.0, higher)
                weights = tl.exp2(scores - base[:, None])
                keep = tl.exp2(part_best - base)
                part_mass = part_mass * keep + tl.sum(weights, axis=1)
                part = part * keep[:, None] + tl.dot(weights.to(DOT_TYPE), v, input_precision=PRECISION)
                part_best = higher
            total, best, mass = _join(total, best, mass, part, part_best, part_mass)
        q_heads = tl.num_programs(1) * GROUP
        if alone == 1:
            place = out_ptr + ((token + query).to(tl.int64) * q_heads + head * GROUP + of_group)[:, None] * V_DIM
            result = total / mass[:, None] * v_scale
            tl.store(place + v_dims, result.to(out_ptr.dtype.element_ty), mask=here[:, None] & (v_dims < V_DIM))
        else:
            lines = (item * tl.num_programs(1) + head).to(tl.int64) * LINES + line
            tl.store(partial_ptr + lines[:, None] * BLOCK_V + v_dims, total)
            tl.store(best_ptr + lines, best)
            tl.store(mass_ptr + lines, mass)


@triton.jit
def _join_kernel(
    partial_ptr,
    best_ptr,
    mass_ptr,
    out_ptr,
    blocks_ptr,
    ends_ptr,
    v_scale,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    V_DIM: tl.constexpr,
    LINES: tl.constexpr,
    BLOCK_V: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        wait_then_release()
    block = tl.program_id(0)
    head = tl.program_id(1)
    start = tl.load(ends_ptr + block)
    end = tl.load(ends_ptr + block + 1)
    if end - start > 1:
        token = tl.load(blocks_ptr + block * 4 + 1)
        count = tl.load(blocks_ptr + block * 4 + 2)
        line = tl.program_id(2) * BLOCK_G + tl.arange(0, BLOCK_G)  # the heads of one query
        dims = tl.arange(0, BLOCK_V)
        if tl.program_id(2) < count:
            best = tl.full((BLOCK_G,), float("-inf"), tl.float32)
            mass = tl.zeros((BLOCK_G,), tl.float32)
            total = tl.zeros((BLOCK_G, BLOCK_V), tl.float32)
            for item in range(start, end):
                lines = (item * tl.num_programs(1) + head).to(tl.int64) * LINES + line
                part = tl.load(partial_ptr + lines[:, None] * BLOCK_V + dims)
                total, best, mass = _join(total, best, mass, part, tl.load(best_ptr + lines), tl.load(mass_ptr + lines))
            of_group = tl.arange(0, BLOCK_G)
            q_heads = tl.num_programs(1) * GROUP
            place = (token + tl.program_id(2)).to(tl.int64) * q_heads + head * GROUP + of_group
            result = total / mass[:, None] * v_scale
            inside = (of_group < GROUP)[:, None] & (dims < V_DIM)
            tl.store(out_ptr + place[:, None] * V_DIM + dims, result.to(out_ptr.dtype.element_ty), mask=inside)


class TritonExtendAttention:
    """Rows of any number of new tokens; what it plans from lengths on the device may be captured in a CUDA graph."""

    capturable = True

    def __init__(self, spec: AttentionSpec) -> None:
        self._spec = spec
        on_gpu = spec.device.type == "cuda"
        if spec.kv_dtype.itemsize == 1 and on_gpu and not holds_8_bit_floats(spec.device):
            raise KernelUnavailable(f"reads pages of {spec.kv_dtype} on GPUs of compute capability 8.9 and later only")
        group = triton.next_power_of_2(spec.q_heads // spec.kv_heads)
        if group > _LINES:
            raise KernelUnavailable(f"takes at most {_LINES} query heads per kv-head")
        sms = torch.cuda.get_device_properties(spec.device).multi_processor_count if on_gpu else 1
        self._splits = max(4, sms * _PROGRAMS_PER_SM // spec.kv_heads)
        self._queries = _LINES // group

    def plan(self, rows: PagedRows) -> _ExtendPlan:
        spec, device = self._spec, rows.page_table.device
        q_lens, kv_lens = rows.device_q_lens, rows.device_lens
        if q_lens is None:
            same = len(set(rows.q_lens)) == 1  # from the host, but for steps whose lengths need no copy
            q_lens = (
                torch.full((len(rows.q_lens),), rows.q_lens[0], device=device) if same else _upload(rows.q_lens, device)
            )
        if kv_lens is None:
            kv_lens = _upload(rows.kv_lens, device)
        items = plan_items(
            q_lens,
            kv_lens,
            rows.tokens,
            self._queries,
            _TILE * _STRETCH,
            spec.window or 0,
            self._splits,
        )
        places = self._splits * spec.kv_heads * _LINES
        width = max(16, triton.next_power_of_2(spec.v_dim))
        partial = torch.empty((places, width), dtype=torch.float32, device=device)
        sums = torch.empty((2, places), dtype=torch.float32, device=device)
        may_split = rows.tokens // self._queries <= self._splits
        return _ExtendPlan(spec, self._queries, rows.page_table, items, partial, sums, may_split)


def _upload(values: tuple[int, ...], device: torch.device) -> torch.Tensor:
    host = torch.tensor(values)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


@dataclass(frozen=True)
class _ExtendPlan:
    """`partial` float32 `[items * kv_heads * lines, v_dim]` and `sums` `[2, the same]` hold split blocks' stretches."""

    reads_new: ClassVar[bool] = False
    spec: AttentionSpec
    queries: int
    table: torch.Tensor
    plan: ExtendItems
    partial: torch.Tensor
    sums: torch.Tensor
    may_split: bool

    def run(
        self, q: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor, scale: KVScale = UNSCALED
    ) -> torch.Tensor:
        spec, overlap = self.spec, overlaps(q.device)
        group = spec.q_heads // spec.kv_heads
        heads = triton.next_power_of_2(group)
        out = torch.empty((q.shape[0], spec.q_heads, spec.v_dim), dtype=q.dtype, device=q.device)
        block_v = max(16, triton.next_power_of_2(spec.v_dim))
        _block_kernel[(self.plan.items.shape[0], spec.kv_heads)](
            q,
            k_pages,
            v_pages,
            out,
            self.partial,
            self.sums[0],
            self.sums[1],
            self.table,
            self.plan.blocks,
            self.plan.items,
            q.stride(0),
            q.stride(1),
            *k_pages.stride()[:3],
            *v_pages.stride()[:3],
            self.table.stride(0),
            spec.scale * scale.k,
            scale.v,
            spec.softcap or 1.0,
            GROUP=group,
            BLOCK_G=heads,
            K_DIM=spec.k_dim,
            V_DIM=spec.v_dim,
            PAGE=spec.page_size,
            WINDOW=spec.window or 0,
            SOFTCAP=spec.softcap is not None,
            TILE=_TILE,
            STRETCH=_STRETCH,
            LINES=_LINES,
            BLOCK_K=max(16, triton.next_power_of_2(spec.k_dim)),
            BLOCK_V=block_v,
            STAGES=2 if q.element_size() == 2 else 1,
            PRECISION="ieee",
            DOT_TYPE=dot_type(q, k_pages),
            OVERLAP=overlap,
            num_warps=4,
            launch_pdl=overlap,
        )
        if self.may_split:
            self._join(out, scale)
        return out

    def _join(self, out: torch.Tensor, scale: KVScale) -> None:
        spec, overlap = self.spec, overlaps(out.device)
        group = spec.q_heads // spec.kv_heads
        _join_kernel[(self.plan.blocks.shape[0], spec.kv_heads, self.queries)](
            self.partial,
            self.sums[0],
            self.sums[1],
            out,
            self.plan.blocks,
            self.plan.ends,
            scale.v,
            GROUP=group,
            BLOCK_G=triton.next_power_of_2(group),
            V_DIM=spec.v_dim,
            LINES=_LINES,
            BLOCK_V=max(16, triton.next_power_of_2(spec.v_dim)),
            OVERLAP=overlap,
            num_warps=2,
            launch_pdl=overlap,
        )
