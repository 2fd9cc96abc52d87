"""Paged attention with torch's scaled dot-product attention: gathers pages, then attends. Any device.

A (page, head) cell is contiguous and cells have one stride, so a gather is one `index_select` over cells straight into
`[rows, heads, positions, dim]` order. Decode rows are gathered in batches of like lengths into one reused workspace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from baton_kernels.kv_scale import UNSCALED, KVScale
from baton_kernels.paged_attention import AttentionSpec, PagedRows

_GATHER_VALUES = 1 << 21  # values of K gathered at a time: 8 MiB in float32, about what a core's caches hold
_QUERY_BLOCK = 512  # queries of one row per call: bounds the mask and skips the keys that none of them sees


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    spec: AttentionSpec,
    scale: KVScale,
) -> torch.Tensor:
    """Attention over `[batch, heads, length, dim]`; `mask` is boolean, True where a key is seen."""
    k, v = k.to(q.dtype), v.to(q.dtype)
    if scale != UNSCALED:
        k, v = k * scale.k, v * scale.v
    grouped = q.shape[1] != k.shape[1]
    if spec.softcap is None:
        return functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=spec.scale, enable_gqa=grouped
        )
    if grouped:
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.matmul(q, k.transpose(-1, -2)).mul_(spec.scale)
    scores = torch.tanh(scores / spec.softcap) * spec.softcap
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores.masked_fill_(~mask, float("-inf"))
    return torch.matmul(torch.softmax(scores.float(), dim=-1).to(q.dtype), v)


def _cells(pages: torch.Tensor) -> torch.Tensor:
    """`[pages, heads, page_size, dim]` as a view `[pages * heads, page_size * dim]`, 8-bit floats as bytes."""
    flat = pages.flatten(0, 1).flatten(1, 2)
    return flat.view(torch.uint8) if pages.dtype.itemsize == 1 else flat


@dataclass(frozen=True)
class _Block:
    """Queries `[q_start, q_end)` of the step against keys `[k_start, k_end)` of their row's gathered keys."""

    q_start: int
    q_end: int
    k_start: int
    k_end: int
    mask: torch.Tensor | None  # None: plainly causal


@dataclass(frozen=True)
class _ExtendRow:
    cells: torch.Tensor
    blocks: tuple[_Block, ...]


class TorchExtendAttention:
    """Rows of several new tokens, one at a time, in blocks of queries."""

    capturable = False

    def __init__(self, spec: AttentionSpec) -> None:
        self._spec = spec

    def plan(self, rows: PagedRows) -> _ExtendPlan:
        spec = self._spec
        heads = torch.arange(spec.kv_heads, device=rows.page_table.device)[:, None]
        planned = []
        start = 0
        for row, (q_len, kv_len) in enumerate(zip(rows.q_lens, rows.kv_lens, strict=True)):
            first_seen = 0 if spec.window is None else max(0, kv_len - q_len - spec.window + 1)
            first_page, end_page = first_seen // spec.page_size, -(-kv_len // spec.page_size)
            pages = rows.page_table[row, first_page:end_page].long()
            cells = (pages * spec.kv_heads + heads).flatten()
            blocks = tuple(self._blocks(start, q_len, kv_len, first_page * spec.page_size, pages.device))
            planned.append(_ExtendRow(cells, blocks))
            start += q_len
        return _ExtendPlan(spec, planned)

    def _blocks(self, start: int, q_len: int, kv_len: int, origin: int, device: torch.device) -> Iterator[_Block]:
        window = self._spec.window
        for begin in range(0, q_len, _QUERY_BLOCK):
            end = min(begin + _QUERY_BLOCK, q_len)
            first, last = kv_len - q_len + begin, kv_len - q_len + end - 1
            k_start = origin if window is None else max(origin, first - window + 1)
            windowed = window is not None and last - window + 1 > k_start
            mask = None
            if windowed or first > k_start:
                query = torch.arange(first, last + 1, device=device)[:, None]
                key = torch.arange(k_start, last + 1, device=device)
                mask = key <= query
                if windowed and window is not None:
                    mask &= key > query - window
            yield _Block(start + begin, start + end, k_start - origin, last + 1 - origin, mask)


class _ExtendPlan:
    reads_new = False

    def __init__(self, spec: AttentionSpec, rows: list[_ExtendRow]) -> None:
        self._spec = spec
        self._rows = rows

    def run(
        self, q: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor, scale: KVScale = UNSCALED
    ) -> torch.Tensor:
        spec = self._spec
        k_cells, v_cells = _cells(k_pages), _cells(v_pages)
        out = q.new_empty(q.shape[0], spec.q_heads, spec.v_dim)
        for row in self._rows:
            k = k_cells.index_select(0, row.cells).view(spec.kv_dtype).view(1, spec.kv_heads, -1, spec.k_dim)
            v = v_cells.index_select(0, row.cells).view(spec.kv_dtype).view(1, spec.kv_heads, -1, spec.v_dim)
            for block in row.blocks:
                queries = q[block.q_start : block.q_end].transpose(0, 1).unsqueeze(0)
                keys, values = k[:, :, block.k_start : block.k_end], v[:, :, block.k_start : block.k_end]
                result = _attend(queries, keys, values, block.mask, block.mask is None, spec, scale)
                out[block.q_start : block.q_end] = result[0].transpose(0, 1)
        return out


@dataclass(frozen=True)
class _DecodeBatch:
    """Rows gathered together, padded to the pages of the longest.

    `rows` selects them from the step, `cells` is flat over (row, head, page). `mask` is `[rows, 1, 1, positions]`.
    Positions from `clean` on hold what no row may see in some row; `hidden` is `~mask` for these alone.
    """

    rows: torch.Tensor
    cells: torch.Tensor
    mask: torch.Tensor
    clean: int
    hidden: torch.Tensor


class TorchDecodeAttention:
    """Rows of one new token, batched."""

    capturable = False

    def __init__(self, spec: AttentionSpec) -> None:
        self._spec = spec
        self._dtype = torch.uint8 if spec.kv_dtype.itemsize == 1 else spec.kv_dtype
        self._workspace = torch.empty(0, dtype=self._dtype, device=spec.device)

    def plan(self, rows: PagedRows) -> _DecodePlan:
        batches = [self._batch(members, rows) for members in self._gather_order(rows.kv_lens)]
        needed = max((batch.cells.numel() for batch in batches), default=0)
        needed *= self._spec.page_size * (self._spec.k_dim + self._spec.v_dim)
        if self._workspace.numel() < needed:
            self._workspace = torch.empty(needed, dtype=self._dtype, device=self._spec.device)
        return _DecodePlan(self._spec, batches, self._workspace)

    def _first_page(self, kv_len: int) -> int:
        return 0 if self._spec.window is None else max(0, kv_len - self._spec.window) // self._spec.page_size

    def _page_count(self, kv_len: int) -> int:
        return -(-kv_len // self._spec.page_size) - self._first_page(kv_len)

    def _gather_order(self, kv_lens: Iterable[int]) -> Iterator[list[tuple[int, int]]]:
        """Rows as (row, kv_len), shortest first, cut where padding would double a row or the workspace is full."""
        limit = max(1, _GATHER_VALUES // (self._spec.kv_heads * self._spec.page_size * self._spec.k_dim))
        members: list[tuple[int, int]] = []
        for row, kv_len in sorted(enumerate(kv_lens), key=lambda item: self._page_count(item[1])):
            pages = self._page_count(kv_len)
            too_big = (len(members) + 1) * pages > limit
            if members and (too_big or pages > 2 * self._page_count(members[0][1])):
                yield members
                members = []
            members.append((row, kv_len))
        if members:
            yield members

    def _batch(self, members: list[tuple[int, int]], rows: PagedRows) -> _DecodeBatch:
        spec, device = self._spec, rows.page_table.device
        width = max(self._page_count(kv_len) for _, kv_len in members)
        index = torch.tensor([row for row, _ in members], device=device)
        lens = torch.tensor([kv_len for _, kv_len in members], device=device)
        first = torch.tensor([self._first_page(kv_len) for _, kv_len in members], device=device)
        columns = (first[:, None] + torch.arange(width, device=device)).clamp_(max=rows.page_table.shape[1] - 1)
        pages = rows.page_table[index[:, None], columns].long()
        heads = torch.arange(spec.kv_heads, device=device)[:, None]
        cells = (pages[:, None, :] * spec.kv_heads + heads).flatten()
        positions = first[:, None] * spec.page_size + torch.arange(width * spec.page_size, device=device)
        mask = positions < lens[:, None]
        if spec.window is not None:
            mask &= positions >= (lens - spec.window)[:, None]
        clean = min(kv_len - self._first_page(kv_len) * spec.page_size for _, kv_len in members)
        mask = mask[:, None, None, :]
        return _DecodeBatch(index, cells, mask, clean, ~mask[:, 0, 0, clean:, None].unsqueeze(1))


class _DecodePlan:
    reads_new = False

    def __init__(self, spec: AttentionSpec, batches: list[_DecodeBatch], workspace: torch.Tensor) -> None:
        self._spec = spec
        self._batches = batches
        self._workspace = workspace

    def run(
        self, q: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor, scale: KVScale = UNSCALED
    ) -> torch.Tensor:
        spec = self._spec
        k_cells, v_cells = _cells(k_pages), _cells(v_pages)
        out = q.new_empty(q.shape[0], spec.q_heads, spec.v_dim)
        for batch in self._batches:
            count, k_width = batch.cells.numel(), k_cells.shape[1]
            k = self._gather(k_cells, batch, self._workspace[: count * k_width], spec.k_dim)
            v_space = self._workspace[count * k_width : count * (k_width + v_cells.shape[1])]
            v = self._gather(v_cells, batch, v_space, spec.v_dim)
            # Query heads that share a kv-head become the queries of one call: no copy of K and V per query head.
            queries = q.index_select(0, batch.rows).view(-1, spec.kv_heads, spec.q_heads // spec.kv_heads, spec.k_dim)
            out[batch.rows] = _attend(queries, k, v, batch.mask, False, spec, scale).flatten(1, 2)
        return out

    def _gather(self, cells: torch.Tensor, batch: _DecodeBatch, space: torch.Tensor, dim: int) -> torch.Tensor:
        gathered = torch.index_select(cells, 0, batch.cells, out=space.view(-1, cells.shape[1]))
        gathered = gathered.view(batch.rows.numel(), self._spec.kv_heads, -1, dim)
        # A NaN that an earlier owner left in the tail of a page must not get through a weight of zero.
        gathered[:, :, batch.clean :].masked_fill_(batch.hidden, 0)
        return gathered.view(self._spec.kv_dtype)
