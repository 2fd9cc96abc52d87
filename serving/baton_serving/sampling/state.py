"""What the sampler knows of each request slot, held on the device and read by batched gathers.

On the host one flag word per slot tells which parts of the sampler a batch needs, so that no step asks the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

import numpy as np
import torch
from torch import Tensor

from baton_serving.kv.staging import upload, upload_parts
from baton_serving.sampling.params import SamplingParams, SlotSetup
from baton_serving.sampling.seeds import stream_key
from baton_serving.sampling.tables import TokenCounts, TokenRows


class Features(IntFlag):
    """Parts of the sampler that a batch needs. None of them: greedy."""

    GREEDY = 0
    RANDOM = 1
    TOP_K = 2
    TOP_P = 4
    MIN_P = 8
    PENALTIES = 16
    BIAS = 32
    MIN_NEW = 64
    PROCESSOR = 128


# These read only tensors that never move and call nobody else's code, so a CUDA graph may hold them.
GRAPH_SAFE: Final = Features.RANDOM | Features.TOP_K | Features.TOP_P | Features.MIN_P


class FloatColumn(IntEnum):
    """Columns of `SamplingState.floats`. Temperature 0: greedy."""

    TEMPERATURE = 0
    TOP_P = 1
    MIN_P = 2
    FREQUENCY = 3
    PRESENCE = 4
    REPETITION = 5


class IntColumn(IntEnum):
    """Columns of `SamplingState.ints`. The rows are those of the compact tables, 0 when the slot has none."""

    KEY = 0
    TOP_K = 1
    MIN_NEW = 2
    COUNT_ROW = 3
    BIAS_ROW = 4
    STOP_ROW = 5


@dataclass(frozen=True)
class ProcessorCall:
    """Rows of a batch that share one custom logit processor, with each row's custom parameters."""

    name: str
    rows: tuple[int, ...]
    params: tuple[dict[str, object], ...]


@dataclass(frozen=True)
class SamplingPlan:
    """What one step's sampling must do, decided on the host. `features` within GRAPH_SAFE fix the operations."""

    features: Features
    processors: tuple[ProcessorCall, ...] = ()


class SamplingState:
    """Sampling state of `max_slots` request slots, and of one more, `padding_slot`, for the padded rows of a graph.

    Device tensors, by slot (these never move; padded rows may name `padding_slot` any number of times):

    - `floats` float32 [max_slots + 1, 6] and `ints` int64 [max_slots + 1, 6], see the column enums;
    - `positions` int64 [max_slots + 1]: tokens generated so far, which is the position that keys the next draw;
    - `last_tokens` int64 [max_slots + 1]: the token last sampled, which is the input of the slot's next decode row.

    `counts`, `biases` and `stops` are compact tables, which grow (and move) when more slots need them.
    """

    def __init__(self, max_slots: int, vocab_size: int, device: torch.device) -> None:
        self.vocab_size = vocab_size
        self.device = device
        self.padding_slot = max_slots
        slots = max_slots + 1
        self.floats = torch.zeros((slots, len(FloatColumn)), dtype=torch.float32, device=device)
        self.floats[:, FloatColumn.TOP_P] = 1.0
        self.floats[:, FloatColumn.REPETITION] = 1.0
        self.ints = torch.zeros((slots, len(IntColumn)), dtype=torch.int64, device=device)
        self.ints[:, IntColumn.TOP_K] = vocab_size
        self.positions = torch.zeros(slots, dtype=torch.int64, device=device)
        self.last_tokens = torch.zeros(slots, dtype=torch.int64, device=device)
        self.counts = TokenCounts(vocab_size, device)
        self.biases = TokenRows(device)
        self.stops = TokenRows(device)
        self._features = np.zeros(slots, dtype=np.uint8)
        self._processors: dict[int, tuple[str, dict[str, object]]] = {}

    def set_up(self, setups: Sequence[SlotSetup]) -> None:
        """Take over the slots of `setups`, in stream order after everything launched before. Does not wait."""
        if not setups:
            return
        ints = [[*self._number_columns(setup.params), *self._table_rows(setup)] for setup in setups]
        floats = [_float_columns(setup.params) for setup in setups]
        lists = ([setup.slot for setup in setups], [len(setup.output) for setup in setups])
        last = [setup.output[-1] if setup.output else 0 for setup in setups]
        flat = [column for row in ints for column in row]
        slots, positions, tokens, columns = upload_parts((*lists, last, flat), self.device)
        self.positions.index_copy_(0, slots, positions)
        self.last_tokens.index_copy_(0, slots, tokens)
        self.ints.index_copy_(0, slots, columns.view(len(setups), -1))
        self.floats.index_copy_(0, slots, upload(floats, torch.float32, self.device))
        for setup in setups:
            self._features[setup.slot] = _features_of(setup)
            self._processors.pop(setup.slot, None)
            if setup.params.custom_logit_processor is not None:
                custom = setup.params.custom_params or {}
                self._processors[setup.slot] = (setup.params.custom_logit_processor, custom)

    def plan(self, slots: Sequence[int]) -> SamplingPlan:
        """The plan for a step whose sampled rows are `slots`, in row order."""
        features = Features(int(np.bitwise_or.reduce(self._features[np.asarray(slots, dtype=np.intp)], initial=0)))
        if not features & Features.PROCESSOR:
            return SamplingPlan(features)
        return SamplingPlan(features, self._processor_calls(slots))

    def advance(self, slots: Tensor, tokens: Tensor, plan: SamplingPlan) -> None:
        """Take note, on the device, that `tokens` int64 [rows] were sampled for `slots` int64 [rows]."""
        self.last_tokens.index_copy_(0, slots, tokens)
        self.positions.index_add_(0, slots, torch.ones_like(slots))
        if plan.features & Features.PENALTIES:
            self.counts.add(self.ints[slots, IntColumn.COUNT_ROW], tokens)

    def _processor_calls(self, slots: Sequence[int]) -> tuple[ProcessorCall, ...]:
        rows: dict[str, list[int]] = {}
        for row, slot in enumerate(slots):
            if slot in self._processors:
                rows.setdefault(self._processors[slot][0], []).append(row)
        return tuple(
            ProcessorCall(name, tuple(named), tuple(self._processors[slots[row]][1] for row in named))
            for name, named in rows.items()
        )

    def _number_columns(self, params: SamplingParams) -> list[int]:
        top_k = self.vocab_size if params.top_k == -1 else min(params.top_k, self.vocab_size)
        return [stream_key(params.seed), top_k, params.min_new_tokens]

    def _table_rows(self, setup: SlotSetup) -> list[int]:
        """Rows of the slot in `counts`, `biases` and `stops`; takes those it needs and gives back the others."""
        params, slot = setup.params, setup.slot
        needs = _features_of(setup)
        rows = [0, 0, 0]
        for table in (self.counts, self.biases, self.stops):
            table.index.release(slot)
        if needs & Features.PENALTIES:
            rows[0] = self.counts.put(slot, setup.prompt, setup.output)
        if needs & Features.BIAS:
            rows[1] = self.biases.put(slot, list(params.logit_bias), list(params.logit_bias.values()))
        if needs & Features.MIN_NEW:
            held_back = sorted({*setup.eos_token_ids, *params.stop_token_ids})
            rows[2] = self.stops.put(slot, held_back, [0.0] * len(held_back))
        return rows


def _float_columns(params: SamplingParams) -> list[float]:
    temperature = 0.0 if params.greedy else params.temperature
    return [
        temperature,
        params.top_p,
        params.min_p,
        params.frequency_penalty,
        params.presence_penalty,
        params.repetition_penalty,
    ]


def _features_of(setup: SlotSetup) -> Features:
    params = setup.params
    random = not params.greedy
    may_stop = bool(setup.eos_token_ids or params.stop_token_ids)
    needs = {
        Features.RANDOM: random,
        Features.TOP_K: random and params.top_k != -1,
        Features.TOP_P: random and params.top_p < 1.0,
        Features.MIN_P: random and params.min_p > 0.0,
        Features.PENALTIES: params.penalised,
        Features.BIAS: bool(params.logit_bias),
        Features.MIN_NEW: may_stop and params.min_new_tokens > len(setup.output),
        Features.PROCESSOR: params.custom_logit_processor is not None,
    }
    return Features(sum(feature for feature, needed in needs.items() if needed))
