"""One batch on an executor, without a scheduler: the steps that a scheduler would order."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time

from baton_serving.runtime.rank import Rank
from baton_serving.sampling.params import SamplingParams, SlotSetup
from baton_serving.scheduling.step import PageWrite, StepPlan


class BatchRunner:
    """Rows are slots 0 to batch - 1, each with pages of its own for `input_len` prompt and `output_len` new tokens."""

    def __init__(self, rank: Rank, input_len: int, output_len: int) -> None:
        self._executor = rank.executor
        self._groups = len(rank.pool.groups)
        self._vocab_size = rank.loaded.info.vocab_size
        self._pages = -(-(input_len + output_len) // rank.pool.shape.page_size)
        self.input_len = input_len
        self.output_len = output_len
        self._step = 0

    def prefill(self, batch: int) -> float:
        """Compute the prompts of all rows in one step; seconds."""
        plan = self._prefill_plan(batch)
        begin = time.perf_counter()
        self._executor.launch(plan).result()
        return time.perf_counter() - begin

    def decode(self, batch: int) -> float:
        """Decode `output_len` tokens of every row after `prefill`, each step launched before the last one's result.

        Returns the median seconds of a step; NaN when there are fewer than two.
        """
        ends: list[float] = []
        pending = None
        for position in range(self.input_len, self.input_len + self.output_len):
            launched = self._executor.launch(self._decode_plan(batch, position))
            if pending is not None:
                pending.result()
                ends.append(time.perf_counter())
            pending = launched
        if pending is not None:
            pending.result()
            ends.append(time.perf_counter())
        gaps = [after - before for before, after in itertools.pairwise(ends)]
        return statistics.median(gaps) if gaps else math.nan

    def _prefill_plan(self, batch: int) -> StepPlan:
        tokens = random.Random(0).choices(range(self._vocab_size), k=batch * self.input_len)
        rows = itertools.product(range(batch), range(self._groups))
        firsts = range(1, 1 + batch * self._groups * self._pages, self._pages)
        return StepPlan(
            step=self._next_step(),
            slots=list(range(batch)),
            starts=[0] * batch,
            lengths=[self.input_len] * batch,
            extend=[1] * batch,
            tokens=tokens,
            sample=[1] * batch,
            setups=[SlotSetup(slot, SamplingParams(temperature=0.0), [], []) for slot in range(batch)],
            page_writes=[
                PageWrite(slot, group, 0, list(range(first, first + self._pages)))
                for (slot, group), first in zip(rows, firsts, strict=True)
            ],
        )

    def _decode_plan(self, batch: int, position: int) -> StepPlan:
        return StepPlan(
            step=self._next_step(),
            slots=list(range(batch)),
            starts=[position] * batch,
            lengths=[1] * batch,
            extend=[0] * batch,
            tokens=[],
            sample=[1] * batch,
        )

    def _next_step(self) -> int:
        self._step += 1
        return self._step
