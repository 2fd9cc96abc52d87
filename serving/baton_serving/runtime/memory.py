"""How many pages fit on a GPU: what is free once weights, activations and CUDA graphs have what they need.

What steps need beyond the weights is measured rather than guessed: the largest prefill and the largest decode step run
once on a pool of a single page. Page tables that were never written name the null page, so no more is touched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from baton_serving.errors import ConfigError
from baton_serving.kv.pool import memory_info
from baton_serving.runtime.executor import Executor
from baton_serving.sampling.params import SamplingParams, SlotSetup
from baton_serving.scheduling.step import StepPlan

_SLACK_BYTES = 512 << 20  # fragments of the allocator, and what libraries load later
_COSTLY = SamplingParams(temperature=1.0, top_k=50, top_p=0.9, min_p=0.01)


@dataclass(frozen=True)
class LargestSteps:
    """Tokens of the largest prefill step, in rows of at most `context`, and rows of the largest decode step."""

    prefill_tokens: int
    context: int
    rows: int


def measure_step_bytes(executor: Executor, device: torch.device, largest: LargestSteps) -> int:
    """Bytes that steps take beside weights and pool: the worse of both, and the decode step's again for its graphs."""
    before = torch.cuda.memory_allocated(device)
    peaks = []
    for plan in (_prefill(largest), _decode(largest)):
        torch.cuda.reset_peak_memory_stats(device)
        executor.launch(plan).result()
        peaks.append(torch.cuda.max_memory_allocated(device) - before)
    return max(peaks) + peaks[1]


def fit_pages(wanted: int, exactly: bool, page_bytes: int, step_bytes: int, device: torch.device) -> int:
    """As many pages as there is room for beside `step_bytes`, at most `wanted`.

    ConfigError when not even one fits, or `wanted` ones must fit `exactly` and don't.
    """
    torch.cuda.empty_cache()
    free, total = memory_info(device)
    pages = (free - step_bytes - _SLACK_BYTES) // page_bytes - 1
    if pages < (wanted if exactly else 1):
        raise ConfigError(
            f"{wanted if exactly else 1} KV pages of {page_bytes >> 10} KiB do not fit: {free >> 20} of {total >> 20} "
            f"MiB are free beside the weights, and steps take {step_bytes + _SLACK_BYTES >> 20}; lower "
            "--max-total-tokens, --chunked-prefill-size, --max-prefill-tokens or --max-running-requests, or raise "
            "--tp-size"
        )
    return min(pages, wanted)


def _prefill(largest: LargestSteps) -> StepPlan:
    lengths = [largest.context] * (largest.prefill_tokens // largest.context)
    if largest.prefill_tokens % largest.context:
        lengths.append(largest.prefill_tokens % largest.context)
    lengths = lengths[: largest.rows]
    rows = len(lengths)
    return StepPlan(
        step=1,
        slots=list(range(rows)),
        starts=[0] * rows,
        lengths=lengths,
        extend=[1] * rows,
        tokens=[0] * sum(lengths),
        sample=[1] * rows,
        setups=[SlotSetup(slot, _COSTLY, [], []) for slot in range(rows)],
    )


def _decode(largest: LargestSteps) -> StepPlan:
    rows = largest.rows
    return StepPlan(
        step=2,
        slots=list(range(rows)),
        starts=[0] * rows,
        lengths=[1] * rows,
        extend=[0] * rows,
        tokens=[],
        sample=[1] * rows,
        setups=[SlotSetup(slot, _COSTLY, [], [0]) for slot in range(rows)],
    )
