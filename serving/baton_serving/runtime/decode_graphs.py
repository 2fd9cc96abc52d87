"""CUDA graphs of decode steps: one launch in the place of some four hundred.

For every batch size of a ladder there is a graph from request slots and positions to logits, and one from logits to
tokens for each of a few sets of sampling features. A batch takes the next larger size; the rows that fill it up name
the padding slot, whose page table holds the null page alone. All graphs share one memory pool: they never run at the
same time, and a step is over on the stream before the next one overwrites its logits and tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from baton_serving.model.attention import AttentionPlanner
from baton_serving.model.batch import ForwardBatch
from baton_serving.model.decoder import CausalModel
from baton_serving.runtime.tables import PageTables
from baton_serving.sampling.sampler import Sampler
from baton_serving.sampling.state import GRAPH_SAFE, Features, SamplingPlan, SamplingState

VARIANTS = (Features.GREEDY, Features.RANDOM, GRAPH_SAFE)  # rising: the first that holds a step's features samples it


@dataclass(frozen=True)
class _Sampling:
    graph: torch.cuda.CUDAGraph
    tokens: torch.Tensor


@dataclass(frozen=True)
class _Captured:
    """Graphs of one batch size. `inputs` int64 `[2, size]` are slots and positions, `logits` `[size, vocab]`."""

    size: int
    inputs: torch.Tensor
    graph: torch.cuda.CUDAGraph
    logits: torch.Tensor
    sampling: dict[Features, _Sampling]


@dataclass(frozen=True)
class GraphStep:
    """A decode step up to its logits `[rows, vocab]`; `slots` int64 `[rows]`. Valid until the next one is launched."""

    slots: torch.Tensor
    logits: torch.Tensor
    _captured: _Captured

    def sample(self, features: Features) -> torch.Tensor | None:
        """Tokens int64 `[rows]`, drawn and noted in the state; None when no graph holds `features`."""
        for variant in VARIANTS:
            if features & ~variant == 0:
                sampling = self._captured.sampling[variant]
                sampling.graph.replay()
                return sampling.tokens[: self.slots.shape[0]]
        return None


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
    ) -> None:
        self._model = model
        self._attention = attention
        self._tables = tables
        self._state = state
        self._sampler = sampler
        self._page_size = page_size
        self._sizes = sorted(sizes)
        self._pool = torch.cuda.graph_pool_handle()
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
        return GraphStep(captured.inputs[0, :rows], captured.logits[:rows], captured)

    def _capture(self, size: int) -> _Captured:
        inputs = torch.zeros((2, size), dtype=torch.int64, device=self._state.device)
        inputs[0] = self._state.padding_slot
        logits = self._logits(inputs)  # compiles what is not compiled yet, which a capture cannot
        for variant in VARIANTS:
            self._sampler.sample(logits, inputs[0], SamplingPlan(variant))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._logits(inputs)
        sampling = {}
        for variant in VARIANTS:
            sampling_graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(sampling_graph, pool=self._pool):
                tokens = self._sampler.sample(logits, inputs[0], SamplingPlan(variant)).tokens
            sampling[variant] = _Sampling(sampling_graph, tokens)
        return _Captured(size, inputs, graph, logits, sampling)

    def _logits(self, inputs: torch.Tensor) -> torch.Tensor:
        slots, positions = inputs
        batch = ForwardBatch.decode(
            self._state.last_tokens.index_select(0, slots),
            positions,
            self._tables.rows(slots, self._tables.max_pages),
            self._page_size,
        )
        return self._model.logits(self._model.hidden_states(batch, self._attention.plan(batch)))
