"""CUDA graphs of short steps: few new tokens of few rows, as when the rest of a prompt comes from the cache.

There is a graph for each of a ladder of token counts, for up to ROWS rows of any lengths; rows that decode may be among
them. A step takes the next larger count; the tokens that fill it up belong to one more row, of the padding slot, which
has no new token and whose page table holds the null page alone.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import torch

from baton_serving.model.attention import AttentionPlanner
from baton_serving.model.batch import ForwardBatch
from baton_serving.model.decoder import CausalModel
from baton_serving.runtime.decode_graphs import GraphStep, SamplingGraph, capture, capture_sampling
from baton_serving.runtime.tables import PageTables
from baton_serving.sampling.sampler import Sampler
from baton_serving.sampling.state import Features, SamplingState
from baton_serving.scheduling.step import StepPlan

ROWS = 16
TOKENS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class _Inputs:
    """One int64 tensor and its parts. `ids` (-1: the token that the row sampled last), `positions` and `rows` are
    `[tokens]`; `slots` `[ROWS + 1]` and `lengths` (new, altogether) `[2, ROWS + 1]` are of the rows, the padding one
    last; `ends` `[ROWS]` are the rows' last tokens."""

    packed: torch.Tensor
    tokens: int

    @classmethod
    def of(cls, tokens: int, device: torch.device) -> _Inputs:
        return cls(torch.zeros(3 * tokens + 3 * (ROWS + 1) + ROWS, dtype=torch.int64, device=device), tokens)

    @property
    def per_token(self) -> torch.Tensor:
        return self.packed[: 3 * self.tokens].view(3, self.tokens)

    @property
    def per_row(self) -> torch.Tensor:
        return self.packed[3 * self.tokens :][: 3 * (ROWS + 1)].view(3, ROWS + 1)

    @property
    def ends(self) -> torch.Tensor:
        return self.packed[3 * self.tokens + 3 * (ROWS + 1) :]


@dataclass(frozen=True)
class _Captured:
    inputs: _Inputs
    graph: torch.cuda.CUDAGraph
    logits: torch.Tensor
    sampling: dict[Features, SamplingGraph]


def packed_inputs(plan: StepPlan, tokens: int, padding_slot: int) -> list[int]:
    """`_Inputs.packed` of a step, for the graph of `tokens` tokens."""
    given = iter(plan.tokens)
    ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    ends: list[int] = []
    for row, (start, length) in enumerate(zip(plan.starts, plan.lengths, strict=True)):
        ids += [next(given) for _ in range(length)] if plan.extend[row] else [-1] * length
        positions += range(start, start + length)
        rows += [row] * length
        ends.append(len(ids) - 1)
    filling = tokens - len(ids)
    no_rows = ROWS - plan.rows
    spare = no_rows + 1
    return [
        *ids,
        *[0] * filling,
        *positions,
        *[0] * filling,
        *rows,
        *[ROWS] * filling,
        *plan.slots,
        *[padding_slot] * spare,
        *plan.lengths,
        *[0] * spare,
        *(start + length for start, length in zip(plan.starts, plan.lengths, strict=True)),
        *[0] * spare,
        *ends,
        *[0] * no_rows,
    ]


class ShortGraphs:
    """Captures on construction, largest size first; nothing may be launched meanwhile."""

    def __init__(
        self,
        model: CausalModel,
        attention: AttentionPlanner,
        tables: PageTables,
        state: SamplingState,
        sampler: Sampler,
        page_size: int,
        pool: Any,
    ) -> None:
        self._model = model
        self._attention = attention
        self._tables = tables
        self._state = state
        self._sampler = sampler
        self._page_size = page_size
        self._pool = pool
        self._captured = {tokens: self._capture(tokens) for tokens in reversed(TOKENS)}

    def takes(self, plan: StepPlan) -> bool:
        """Whether a graph does all that the step asks for up to its logits."""
        return (
            plan.rows <= ROWS
            and sum(plan.lengths) <= TOKENS[-1]
            and all(plan.sample)
            and not plan.embed
            and all(asked.prompt_from < 0 for asked in plan.logprobs)
        )

    def launch(self, plan: StepPlan) -> GraphStep:
        """Run a step that `takes` accepts; logits are in the order of its rows."""
        captured = self._captured[TOKENS[bisect_left(TOKENS, sum(plan.lengths))]]
        host = torch.tensor(packed_inputs(plan, captured.inputs.tokens, self._state.padding_slot))
        captured.inputs.packed.copy_(host.pin_memory(), non_blocking=True)
        captured.graph.replay()
        return GraphStep(captured.inputs.per_row[0, : plan.rows], captured.logits[: plan.rows], captured.sampling)

    def _capture(self, tokens: int) -> _Captured:
        inputs = _Inputs.of(tokens, self._state.device)
        empty = StepPlan(step=0, slots=[], starts=[], lengths=[], extend=[], tokens=[], sample=[])
        inputs.packed.copy_(torch.tensor(packed_inputs(empty, tokens, self._state.padding_slot)))
        graph, logits = capture(lambda: self._logits(inputs), self._pool)
        slots = inputs.per_row[0, :ROWS]
        return _Captured(inputs, graph, logits, capture_sampling(self._sampler, logits, slots, self._pool))

    def _logits(self, inputs: _Inputs) -> torch.Tensor:
        ids, positions, rows = inputs.per_token
        slots = inputs.per_row[0]
        last = self._state.last_tokens.index_select(0, slots.index_select(0, rows))
        batch = ForwardBatch.short(
            torch.where(ids < 0, last, ids),
            positions,
            rows,
            inputs.per_row[1:],
            self._tables.rows(slots, self._tables.max_pages),
            self._page_size,
            inputs.ends,
        )
        return self._model.logits(self._model.hidden_states(batch, self._attention.plan(batch)))
