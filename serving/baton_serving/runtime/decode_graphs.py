"""CUDA graphs of decode steps: one launch in the place of some four hundred.

For every batch size of a ladder there is a graph from request slots and positions to logits, and one from logits to
tokens for each of a few sets of sampling features. A batch takes the next larger size; the rows that fill it up name
the padding slot, whose page table holds the null page alone. All graphs share one memory pool: they never run at the
same time, and a step is over on the stream before the next one overwrites its logits and tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from baton_serving.model.attention import AttentionPlanner
from baton_serving.model.batch import ForwardBatch
from baton_serving.model.decoder import CausalModel
from baton_serving.runtime.tables import PageTables
from baton_serving.sampling.sampler import Sampler
from baton_serving.sampling.state import GRAPH_SAFE, Features, SamplingPlan, SamplingState

VARIANTS = (Features.GREEDY, Features.RANDOM, GRAPH_SAFE)  # rising: the first that holds a step's features samples it


@dataclass(frozen=True)
class SamplingGraph:
    """From logits, which do not move, to `tokens` int64 `[rows]`."""

    graph: torch.cuda.CUDAGraph
    tokens: torch.Tensor


@dataclass(frozen=True)
class _Captured:
    """Graphs of one batch size. `inputs` int64 `[2, size]` are slots and positions, `logits` `[size, vocab]`."""

    size: int
    inputs: torch.Tensor
    graph: torch.cuda.CUDAGraph
    logits: torch.Tensor
    sampling: dict[Features, SamplingGraph]


@dataclass(frozen=True)
class GraphStep:
    """A graphed step up to its logits `[rows, vocab]`; `slots` int64 `[rows]`. Valid until the next one is launched."""

    slots: torch.Tensor
    logits: torch.Tensor
    _sampling: dict[Features, SamplingGraph]

    def sample(self, features: Features) -> torch.Tensor | None:
        """Tokens int64 `[rows]`, drawn and noted in the state; None when no graph holds `features`."""
        for variant in VARIANTS:
            if features & ~variant == 0:
                sampling = self._sampling[variant]
                sampling.graph.replay()
                return sampling.tokens[: self.slots.shape[0]]
        return None


def capture(work: Callable[[], torch.Tensor], pool: Any) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """A graph of `work` and what it leaves; `work` runs once before, to compile what a capture cannot.

    `pool` is a `torch.cuda.graph_pool_handle()`.
    """
    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        out = work()
    return graph, out


def capture_sampling(
    sampler: Sampler, logits: torch.Tensor, slots: torch.Tensor, pool: Any
) -> dict[Features, SamplingGraph]:
    """A graph from `logits` to the tokens of `slots` for each of VARIANTS."""
    found = {}
    for variant in VARIANTS:
        graph, tokens = capture(partial(_tokens, sampler, logits, slots, SamplingPlan(variant)), pool)
        found[variant] = SamplingGraph(graph, tokens)
    return found


def _tokens(sampler: Sampler, logits: torch.Tensor, slots: torch.Tensor, plan: SamplingPlan) -> torch.Tensor:
    return sampler.sample(logits, slots, plan).tokens


class DecodeGraphs:
    """Captures on construction, largest size first, which takes some seconds; nothing may be launched meanwhile."""

    def __init__(
        self,
        model: CausalModel,
        attention: AttentionPlanner,
        tables: PageTables,
        state: SamplingState,
        sampler: Sampler,
        page_size: int,
        sizes: Sequence[int],
        pool: Any,
    ) -> None:
        self._model = model
        self._attention = attention
        self._tables = tables
        self._state = state
        self._sampler = sampler
        self._page_size = page_size
        self._sizes = sorted(sizes)
        self._pool = pool
        captured = [self._capture(size) for size in reversed(self._sizes)]
        self._captured = {each.size: each for each in captured}

    @property
    def largest(self) -> int:
        """Rows of the largest batch that a graph takes."""
        return self._sizes[-1]

    def launch(self, slots: list[int], positions: list[int]) -> GraphStep:
        """Run rows of one token each, at most `largest`: the last sampled token of `slots[i]` at `positions[i]`."""
        rows = len(slots)
        captured = self._captured[self._sizes[bisect_left(self._sizes, rows)]]
        padding = captured.size - rows
        host = torch.tensor([slots + [self._state.padding_slot] * padding, positions + [0] * padding])
        captured.inputs.copy_(host.pin_memory(), non_blocking=True)
        captured.graph.replay()
        return GraphStep(captured.inputs[0, :rows], captured.logits[:rows], captured.sampling)

    def _capture(self, size: int) -> _Captured:
        inputs = torch.zeros((2, size), dtype=torch.int64, device=self._state.device)
        inputs[0] = self._state.padding_slot
        graph, logits = capture(lambda: self._logits(inputs), self._pool)
        return _Captured(size, inputs, graph, logits, capture_sampling(self._sampler, logits, inputs[0], self._pool))

    def _logits(self, inputs: torch.Tensor) -> torch.Tensor:
        slots, positions = inputs
        batch = ForwardBatch.decode(
            self._state.last_tokens.index_select(0, slots),
            positions,
            self._tables.rows(slots, self._tables.max_pages),
            self._page_size,
        )
        return self._model.logits(self._model.hidden_states(batch, self._attention.plan(batch)))
