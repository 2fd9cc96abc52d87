"""Paged attention by FlashInfer: its "fa2" kernels for any recent GPU, its "fa3" kernels for Hopper.

Pages are read in place through their strides (FlashInfer's "HND" layout). On Hopper, rows that begin in this step are
read where the projection has left them, before they were cut to 8 bits if pages have those: contiguous tokens come by
bulk copies, a fifth faster than pages, and "fa3" knows no pages of 8-bit floats. The host plans a step; two wrappers
take turns, so that a plan never overwrites the pinned memory from which the last one may still be copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, chain, cycle
from typing import Any, ClassVar

import torch
from flashinfer.prefill import BatchPrefillWithPagedKVCacheWrapper, BatchPrefillWithRaggedKVCacheWrapper

from baton_kernels.kv_scale import UNSCALED, KVScale
from baton_kernels.paged_attention import AttentionSpec, PagedRows
from baton_kernels.registry import KernelUnavailable

_WORKSPACE_BYTES = 384 << 20  # what split rows of a large step leave for the merge
_HEAD_DIMS = frozenset({64, 128, 256})


class _Turn:
    """A wrapper for pages, one for new tokens, and the event after which the last plan of either is on the device."""

    def __init__(self, workspace: torch.Tensor, backend: str) -> None:
        self.paged = BatchPrefillWithPagedKVCacheWrapper(workspace, "HND", backend=backend)
        self.new = BatchPrefillWithRaggedKVCacheWrapper(workspace, "NHD", backend="fa3")
        self.copied = torch.cuda.Event()


class FlashInferAttention:
    """Rows of any number of new tokens. KernelUnavailable when FlashInfer has no kernel for `spec`."""

    capturable = False
    backend: ClassVar[str] = "fa2"
    narrow: ClassVar[tuple[torch.dtype, ...]] = (torch.float8_e4m3fn, torch.float8_e5m2)  # pages beside q's own type

    def __init__(self, spec: AttentionSpec) -> None:
        if spec.k_dim != spec.v_dim or spec.k_dim not in _HEAD_DIMS:
            raise KernelUnavailable(f"FlashInfer has no kernel for heads of {spec.k_dim} and {spec.v_dim} values")
        if spec.kv_dtype not in (spec.dtype, *self.narrow):
            raise KernelUnavailable(f"FlashInfer's {self.backend} does not read pages of {spec.kv_dtype}")
        self._spec = spec
        hopper = torch.cuda.get_device_capability(spec.device)[0] == 9
        self._may_read_new = hopper and (self.backend == "fa3" or spec.kv_dtype in self.narrow)
        workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=spec.device)
        self._turns = cycle([_Turn(workspace, self.backend) for _ in range(2)])

    def plan(self, rows: PagedRows) -> _FlashInferPlan:
        turn = next(self._turns)
        turn.copied.synchronize()
        reads_new = self._may_read_new and rows.q_lens == rows.kv_lens
        if reads_new:
            self._plan_new(turn.new, rows)
        else:
            self._plan_pages(turn.paged, rows)
        turn.copied.record()
        return _FlashInferPlan(turn.new if reads_new else turn.paged, reads_new)

    def _plan_new(self, wrapper: BatchPrefillWithRaggedKVCacheWrapper, rows: PagedRows) -> None:
        spec, starts = self._spec, _int32([0, *accumulate(rows.q_lens)])
        options = self._options(spec.dtype)
        wrapper.plan(starts, starts, spec.q_heads, spec.kv_heads, spec.k_dim, **options)

    def _plan_pages(self, wrapper: BatchPrefillWithPagedKVCacheWrapper, rows: PagedRows) -> None:
        spec = self._spec
        size, width = spec.page_size, rows.page_table.shape[1]
        # Whole pages before a row's window are left out: nothing in them is seen, or even finite for sure.
        firsts = [self._first_page(q, kv) for q, kv in zip(rows.q_lens, rows.kv_lens, strict=True)]
        ends = [-(-kv // size) for kv in rows.kv_lens]
        counts = [end - first for first, end in zip(firsts, ends, strict=True)]
        places = [
            range(row * width + first, row * width + end)
            for row, (first, end) in enumerate(zip(firsts, ends, strict=True))
        ]
        index = torch.tensor(list(chain.from_iterable(places)), dtype=torch.int64).pin_memory()
        wrapper.plan(
            _int32([0, *accumulate(rows.q_lens)]),
            _int32([0, *accumulate(counts)]),
            rows.page_table.flatten().index_select(0, index.to(rows.page_table.device, non_blocking=True)),
            _int32([(kv - 1) % size + 1 for kv in rows.kv_lens]),
            spec.q_heads,
            spec.kv_heads,
            spec.k_dim,
            size,
            **self._options(spec.kv_dtype),
        )

    def _options(self, kv_dtype: torch.dtype) -> dict[str, Any]:
        spec = self._spec
        return {
            "causal": True,
            "sm_scale": spec.scale,
            "window_left": -1 if spec.window is None else spec.window - 1,
            "logits_soft_cap": spec.softcap,
            "q_data_type": spec.dtype,
            "kv_data_type": kv_dtype,
        }

    def _first_page(self, q_len: int, kv_len: int) -> int:
        window = self._spec.window
        return 0 if window is None else max(0, kv_len - q_len - window + 1) // self._spec.page_size


class FlashInferFa3Attention(FlashInferAttention):
    """The same by the kernels written for Hopper."""

    backend: ClassVar[str] = "fa3"
    narrow: ClassVar[tuple[torch.dtype, ...]] = ()  # its 8-bit kernels want 8-bit queries as well


@dataclass(frozen=True)
class _FlashInferPlan:
    wrapper: BatchPrefillWithPagedKVCacheWrapper | BatchPrefillWithRaggedKVCacheWrapper
    reads_new: bool

    def run(
        self, q: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor, scale: KVScale = UNSCALED
    ) -> torch.Tensor:
        out = torch.empty((*q.shape[:2], v_pages.shape[-1]), dtype=q.dtype, device=q.device)
        if isinstance(self.wrapper, BatchPrefillWithRaggedKVCacheWrapper):
            self.wrapper.run(q, k_pages, v_pages, out=out)
        else:
            scales = {} if scale == UNSCALED else {"k_scale": scale.k, "v_scale": scale.v}
            self.wrapper.run(q, (k_pages, v_pages), out=out, **scales)
        return out


def _int32(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)
