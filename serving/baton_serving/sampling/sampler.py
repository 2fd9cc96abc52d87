"""Logits to tokens, on the device, for a whole batch at once.

Order of effects: repetition penalty, frequency and presence penalties, logit bias, end tokens held back until
`min_new_tokens`, custom processors; then temperature, top-k, top-p, min-p and the draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from baton_kernels.argmax import ARGMAX
from baton_kernels.sample import SAMPLE, DrawRows
from baton_serving.kv.staging import upload
from baton_serving.sampling.processors import LogitProcessor, apply_processor
from baton_serving.sampling.random_bits import random_bits
from baton_serving.sampling.state import Features, FloatColumn, IntColumn, SamplingPlan, SamplingState

_EDITING = Features.PENALTIES | Features.BIAS | Features.MIN_NEW | Features.PROCESSOR


class Sampled(NamedTuple):
    """Tokens int64 [rows] on the device, and the rows whose request must fail: its custom processor did."""

    tokens: Tensor
    failed_rows: tuple[int, ...] = ()


class Sampler:
    """Samples one token per row and notes it in the state, without waiting for the device.

    A row's token depends on its logits, its parameters, its seed and its position alone: not on the other rows, nor on
    where it stands among them. Equal float32 logits give the same token on every device, unless the draw falls within
    the rounding of `exp` of the border between two tokens (of the order of one in ten million draws).
    """

    def __init__(self, state: SamplingState, processors: Mapping[str, LogitProcessor] | None = None) -> None:
        self._state = state
        self._processors = dict(processors or {})
        self._draw = SAMPLE.select(state.device, torch.float32)
        self._argmax = ARGMAX.select(state.device, torch.float32)

    def sample(self, logits: Tensor, slots: Tensor, plan: SamplingPlan) -> Sampled:
        """Sample and advance: positions, last tokens and token counts of `slots` are updated.

        `logits` [rows, vocab] of any float type, left as they are; `slots` int64 [rows] on the device, distinct but
        for the padding slot; `plan` is `state.plan` of the same slots (a superset of its features changes nothing).
        Greedy rows take the first of equal logits. Every row gets a token in range, even one with NaN among its logits
        (find those with `nan_rows`) or whose processor failed.
        """
        failed: tuple[int, ...] = ()
        if plan.features == Features.GREEDY:
            tokens = self._argmax(logits)  # as they are: a copy in float32 would cost more than the search
        else:
            if plan.features & _EDITING:
                logits = self._edit(logits.float(), slots, plan)
            logits, failed = self._process(logits, plan)
            tokens = self._choose(logits, slots, plan.features)
        self._state.advance(slots, tokens, plan)
        return Sampled(tokens, failed)

    def _edit(self, logits: Tensor, slots: Tensor, plan: SamplingPlan) -> Tensor:
        """Logits float32 after penalties, bias and minimum length: a copy if anything changes."""
        ints = self._state.ints[slots]
        if plan.features & Features.PENALTIES:
            logits = self._penalise(logits, self._state.floats[slots], ints[:, IntColumn.COUNT_ROW])
        if plan.features & Features.BIAS:
            rows = ints[:, IntColumn.BIAS_ROW]
            logits = logits.scatter_add(1, self._state.biases.ids[rows], self._state.biases.values[rows])
        if plan.features & Features.MIN_NEW:
            ids = self._state.stops.ids[ints[:, IntColumn.STOP_ROW]]
            early = self._state.positions[slots] < ints[:, IntColumn.MIN_NEW]
            held = torch.where(early.unsqueeze(1), -torch.inf, logits.gather(1, ids))
            logits = logits.scatter(1, ids, held)
        return logits

    def _process(self, logits: Tensor, plan: SamplingPlan) -> tuple[Tensor, tuple[int, ...]]:
        failed: list[int] = []
        for call in plan.processors:
            rows = upload(call.rows, torch.int64, logits.device)
            processed = apply_processor(call.name, self._processors[call.name], logits[rows], call.params)
            if processed is None:
                failed.extend(call.rows)
            else:
                logits = logits.index_copy(0, rows, processed)
        return logits, tuple(failed)

    def _penalise(self, logits: Tensor, floats: Tensor, rows: Tensor) -> Tensor:
        """Repetition as in transformers (prompt and output), frequency and presence as in OpenAI's API (output)."""
        generated = self._state.counts.generated[rows]
        seen = self._state.counts.prompted[rows] | (generated > 0)
        repetition = torch.where(seen, floats[:, FloatColumn.REPETITION].unsqueeze(1), 1.0)
        logits = torch.where(logits > 0, logits / repetition, logits * repetition)
        frequency = floats[:, FloatColumn.FREQUENCY].unsqueeze(1)
        presence = floats[:, FloatColumn.PRESENCE].unsqueeze(1)
        return logits - frequency * generated - presence * (generated > 0)

    def _choose(self, logits: Tensor, slots: Tensor, features: Features) -> Tensor:
        if not features & Features.RANDOM:
            return self._argmax(logits)
        floats, ints = self._state.floats[slots].t().contiguous(), self._state.ints[slots]
        rows = DrawRows(
            temperature=floats[FloatColumn.TEMPERATURE],
            bits=random_bits(ints[:, IntColumn.KEY], self._state.positions[slots]),
            top_k=ints[:, IntColumn.TOP_K] if features & Features.TOP_K else None,
            top_p=floats[FloatColumn.TOP_P] if features & Features.TOP_P else None,
            min_p=floats[FloatColumn.MIN_P] if features & Features.MIN_P else None,
        )
        return self._draw(logits, rows)


def nan_rows(logits: Tensor) -> Tensor:
    """Which rows of `logits` [rows, vocab] hold a NaN: bool [rows], on the device."""
    return logits.isnan().any(dim=-1)
