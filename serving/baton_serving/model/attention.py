"""Attention of a whole step: which rows go to which back end, planned once per step and KV group.

`AttentionPlanner` lives as long as the worker and owns the back ends' workspaces; `StepAttention` is what the layers of
a model see of it during one step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from baton_kernels.kv_scale import UNSCALED, KVScale
from baton_kernels.paged_attention import (
    DECODE_ATTENTION,
    EXTEND_ATTENTION,
    AttentionSpec,
    PagedAttention,
    PagedAttentionFactory,
    PagedRows,
    PlannedAttention,
)
from baton_kernels.registry import AUTO, KernelUnavailable
from baton_serving.errors import ConfigError, InternalError
from baton_serving.kv.pool import TORCH_DTYPES, KVPool
from baton_serving.kv.staging import to_device, upload
from baton_serving.model.batch import ForwardBatch


@dataclass(frozen=True)
class AttentionHeads:
    """What attention needs to know of a model besides its KV layout; `q_heads` are those of this rank.

    `kv_scales` are those of layers whose keys and values are scaled, for pools of 8-bit floats.
    """

    q_heads: int
    scale: float
    softcap: float | None
    dtype: torch.dtype
    kv_scales: Mapping[int, KVScale] = field(default_factory=dict)


class AttentionPlanner:
    """Plans steps over one pool. `prefill` and `decode` name implementations of `baton_kernels.paged_attention`.

    Rows of one new token go to the decode back end, also when they end a prompt; all others to the prefill one.
    `names` are the implementations in use, prefill's first.
    `decode_capturable`: a CUDA graph may hold the plan of a `ForwardBatch.decode` and the layers that use it;
    `short_capturable`: and that of a `ForwardBatch.short`, which one back end of its own takes as a whole.
    ConfigError when a back end does not exist or can't run here.
    """

    def __init__(self, pool: KVPool, heads: AttentionHeads, prefill: str = AUTO, decode: str = AUTO) -> None:
        shape = pool.shape
        spec = AttentionSpec(
            q_heads=heads.q_heads,
            kv_heads=shape.kv_heads,
            k_dim=shape.k_dim,
            v_dim=shape.v_dim,
            page_size=shape.page_size,
            scale=heads.scale,
            softcap=heads.softcap,
            dtype=heads.dtype,
            kv_dtype=TORCH_DTYPES[shape.dtype],
            device=pool.device,
        )
        specs = [replace(spec, window=group.window) for group in pool.groups]

        def backends(factory: PagedAttentionFactory) -> list[PagedAttention]:
            return [factory(spec) for spec in specs]

        try:
            extend, self._extend = EXTEND_ATTENTION.choose(pool.device, heads.dtype, backends, prefill)
            single, self._decode = DECODE_ATTENTION.choose(pool.device, heads.dtype, backends, decode)
        except KernelUnavailable as error:
            raise ConfigError(f"Attention backend: {error}") from error
        self.names = (extend, single)
        self._short = _capturable_extend(pool, heads, backends)
        self.decode_capturable = all(backend.capturable for backend in self._decode)
        self._group_of = {layer: index for index, group in enumerate(pool.groups) for layer in group.layers}
        self._layer_kv = {layer: pool.layer_kv(layer) for layer in self._group_of}
        self._scales = heads.kv_scales

    @property
    def short_capturable(self) -> bool:
        return bool(self._short)

    def plan(self, batch: ForwardBatch) -> StepAttention:
        """Plan one step; the result is valid until the next call."""
        if batch.device_q_lens is not None:
            part = _plan_part(batch, list(range(len(batch.q_lens))), self._short)
            return StepAttention(batch, [part], self._group_of, self._layer_kv, self._scales)
        single = [row for row, q_len in enumerate(batch.q_lens) if q_len == 1]
        several = [row for row, q_len in enumerate(batch.q_lens) if q_len > 1]
        parts = []
        for rows, backends in ((several, self._extend), (single, self._decode)):
            if rows:
                parts.append(_plan_part(batch, rows, backends))
        return StepAttention(batch, parts, self._group_of, self._layer_kv, self._scales)


def _capturable_extend(
    pool: KVPool, heads: AttentionHeads, backends: Callable[[PagedAttentionFactory], list[PagedAttention]]
) -> list[PagedAttention]:
    """Empty where there is none."""
    try:
        found = EXTEND_ATTENTION.build(pool.device, heads.dtype, backends, "triton")
    except KernelUnavailable:
        return []
    return found if all(backend.capturable for backend in found) else []


@dataclass(frozen=True)
class _Part:
    """The rows of one back end: which of the step's tokens they are (None: all) and a plan per KV group."""

    tokens: torch.Tensor | None
    plans: tuple[PlannedAttention, ...]


def _plan_part(batch: ForwardBatch, rows: list[int], backends: Sequence[PagedAttention]) -> _Part:
    q_lens = tuple(batch.q_lens[row] for row in rows)
    kv_lens = tuple(batch.kv_lens[row] for row in rows)
    tokens, tables, device_lens = None, batch.page_tables, batch.device_lens
    if len(rows) < len(batch.q_lens):
        device = batch.input_ids.device
        mine = torch.zeros(len(batch.q_lens), dtype=torch.bool)
        mine[rows] = True
        tokens = to_device(torch.repeat_interleave(mine, torch.tensor(batch.q_lens)).nonzero().flatten(), device)
        index = upload(rows, torch.int64, device)
        tables = tuple(table.index_select(0, index) for table in tables)
        device_lens = device_lens if device_lens is None else device_lens.index_select(0, index)
    plans = tuple(
        backend.plan(PagedRows(q_lens, kv_lens, table, device_lens, batch.device_q_lens))
        for backend, table in zip(backends, tables, strict=True)
    )
    return _Part(tokens, plans)


class StepAttention:
    """One planned step as a model's layers use it: first write the new tokens' K and V, then attend."""

    def __init__(
        self,
        batch: ForwardBatch,
        parts: list[_Part],
        group_of: dict[int, int],
        layer_kv: dict[int, tuple[torch.Tensor, torch.Tensor]],
        scales: Mapping[int, KVScale],
    ) -> None:
        self._batch = batch
        self._parts = parts
        self._group_of = group_of
        self._layer_kv = layer_kv
        self._scales = scales

    def scale(self, layer: int) -> KVScale:
        """What the layer's pages are scaled by."""
        return self._scales.get(layer, UNSCALED)

    def pages(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of the layer in the pool: views `[pages, kv_heads, page_size, dim]`."""
        return self._layer_kv[layer]

    def write_places(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Page and offset, int64 `[tokens]` each, where the layer's new K and V go."""
        return self._batch.write_pages[self._group_of[layer]], self._batch.write_offsets

    def reads_new(self, layer: int) -> bool:
        """Whether `attend` takes the new tokens' keys and values, rather than their pages alone."""
        group = self._group_of[layer]
        return any(part.plans[group].reads_new for part in self._parts)

    def attend(self, layer: int, q: torch.Tensor, new: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        """Attention of queries `[tokens, q_heads, k_dim]` over their rows' pages: `[tokens, q_heads, v_dim]`.

        `new`, needed with `reads_new`, are keys and values of the same tokens, `[tokens, kv_heads, dim]` each.
        """
        pages, scale = self._layer_kv[layer], self.scale(layer)
        plans = [part.plans[self._group_of[layer]] for part in self._parts]
        if len(plans) == 1:
            return plans[0].run(q, *self._source(plans[0], pages, new, None), scale)
        out = q.new_empty(q.shape[0], q.shape[1], pages[1].shape[-1])
        for part, plan in zip(self._parts, plans, strict=True):
            out[part.tokens] = plan.run(q[part.tokens], *self._source(plan, pages, new, part.tokens), scale)
        return out

    def _source(
        self,
        plan: PlannedAttention,
        pages: tuple[torch.Tensor, torch.Tensor],
        new: tuple[torch.Tensor, torch.Tensor] | None,
        tokens: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where `plan` reads keys and values for the step's `tokens` (None: all)."""
        if not plan.reads_new:
            return pages
        if new is None:
            raise InternalError("this step's attention reads the new tokens' keys and values, and was given none")
        return new if tokens is None else (new[0][tokens], new[1][tokens])
