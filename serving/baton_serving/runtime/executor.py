"""One rank's device work: a `StepPlan` in, tokens out. The same on every rank; rank 0's tokens are the ones that count.

`launch` queues a step on the device and returns at once where the device allows it (CUDA); `PendingStep.result` waits.
Nothing that a step needs comes from the host's view of an earlier step's outcome, so steps can be launched ahead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from baton_serving.kv.pool import KVPool
from baton_serving.model.attention import AttentionPlanner
from baton_serving.model.batch import ForwardBatch
from baton_serving.model.decoder import CausalModel
from baton_serving.model.parallel import ParallelState
from baton_serving.runtime.tables import PageTables
from baton_serving.sampling.logprobs import Measured, MeasuredPrompts, PromptLogprobs, PromptSpan, measure
from baton_serving.sampling.params import LogprobRow, TokenLogprobs
from baton_serving.sampling.processors import LogitProcessor
from baton_serving.sampling.sampler import Sampler, nan_rows
from baton_serving.sampling.state import SamplingState
from baton_serving.scheduling.step import StepPlan, StepResult


@dataclass(frozen=True)
class ExecutorOptions:
    """`max_slots` requests at once, `max_context` tokens each."""

    max_slots: int
    max_context: int
    vocab_size: int
    nan_detection: bool = False


@dataclass(frozen=True)
class _Fetch:
    """Device tensors of one step and their copies on the host, complete once `event` has passed (None: already)."""

    host: list[torch.Tensor]
    event: torch.cuda.Event | None

    @classmethod
    def of(cls, tensors: list[torch.Tensor]) -> _Fetch:
        if not tensors or tensors[0].device.type == "cpu":
            return cls(tensors, None)
        host = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
        for target, source in zip(host, tensors, strict=True):
            target.copy_(source, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return cls(host, event)

    def wait(self) -> list[torch.Tensor]:
        if self.event is not None:
            self.event.synchronize()
        return self.host


@dataclass(frozen=True)
class _Outcome:
    """What a step left on the device. `rows` are the plan's rows that sampled, in order."""

    rows: tuple[int, ...]
    tokens: torch.Tensor
    failed: tuple[int, ...]
    nan: torch.Tensor | None
    measured: Measured | None
    asked: tuple[LogprobRow, ...]


class PendingStep:
    """A launched step; `result` may be asked for once."""

    def __init__(self, plan: StepPlan, outcome: _Outcome | None, prompts: MeasuredPrompts | None) -> None:
        self._plan = plan
        self._outcome = outcome
        self._prompts = prompts
        tensors: list[torch.Tensor] = []
        if outcome is not None:
            tensors.append(outcome.tokens)
            tensors.extend(t for t in (outcome.nan, outcome.measured and outcome.measured.packed) if t is not None)
        if prompts is not None:
            tensors.append(prompts.measured.packed)
        self._fetch = _Fetch.of(tensors)

    def result(self) -> StepResult:
        """Wait for the device and bring the step's outcome to the host."""
        host = iter(self._fetch.wait())
        result = StepResult(self._plan.step, [-1] * self._plan.rows)
        outcome = self._outcome
        if outcome is not None:
            for row, token in zip(outcome.rows, next(host).tolist(), strict=True):
                result.tokens[row] = token
            result.failed_rows = [outcome.rows[index] for index in outcome.failed]
            if outcome.nan is not None:
                found = next(host).tolist()
                result.nan_rows = [row for row, bad in zip(outcome.rows, found, strict=True) if bad]
            if outcome.measured is not None:
                entries = outcome.measured.unpack(next(host))
                result.logprobs = _by_row(outcome.asked, entries)
        if self._prompts is not None:
            result.prompt_logprobs = self._prompts.unpack(next(host))
        return result


def _by_row(asked: tuple[LogprobRow, ...], entries: list[TokenLogprobs]) -> dict[int, TokenLogprobs]:
    return {row.row: entry for row, entry in zip(asked, entries, strict=True)}


class Executor:
    """Runs steps of one model on one device."""

    def __init__(
        self,
        model: CausalModel,
        pool: KVPool,
        attention: AttentionPlanner,
        parallel: ParallelState,
        options: ExecutorOptions,
        processors: Mapping[str, LogitProcessor] | None = None,
    ) -> None:
        self._model = model
        self._pool = pool
        self._attention = attention
        self._parallel = parallel
        self._options = options
        self._device = pool.device
        max_pages = -(-options.max_context // pool.shape.page_size)
        self._tables = PageTables(options.max_slots + 1, len(pool.groups), max_pages, pool.device)
        self._state = SamplingState(options.max_slots, options.vocab_size, pool.device)
        self._sampler = Sampler(self._state, processors)
        self._prompt_logprobs = PromptLogprobs(model.logits)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PendingStep:
        """Queue one step: page copies and tables first, then the forward pass, then sampling."""
        self._pool.copy_pages(plan.copies)
        self._tables.write(plan.page_writes)
        self._state.set_up(plan.setups)
        for setup in plan.setups:
            self._prompt_logprobs.forget(setup.slot)
        slots = torch.tensor(plan.slots, dtype=torch.int64).to(self._device, non_blocking=True)
        spans = _prompt_spans(plan)
        hidden, input_ids = self._forward(plan, slots, every_token=bool(spans))
        prompts = self._prompt_logprobs.measure(hidden, input_ids, spans) if spans else None
        rows = tuple(row for row in range(plan.rows) if plan.sample[row])
        if not rows:
            return PendingStep(plan, None, prompts)
        if spans:
            hidden = hidden[_to_device([_end(plan, row) for row in rows], self._device)]
        elif len(rows) < plan.rows:
            hidden = hidden[_to_device(rows, self._device)]
        return PendingStep(plan, self._sample(plan, rows, hidden), prompts)

    def _forward(self, plan: StepPlan, slots: torch.Tensor, every_token: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states, one per row (its last token) or one per token, and the input tokens."""
        input_ids = self._input_ids(plan, slots)
        longest = max(start + length for start, length in zip(plan.starts, plan.lengths, strict=True))
        batch = ForwardBatch.build(
            plan.starts,
            plan.lengths,
            input_ids,
            self._tables.rows(slots, -(-longest // self._pool.shape.page_size)),
            self._pool.shape.page_size,
            torch.arange(len(input_ids), device=self._device) if every_token else None,
        )
        return self._model.hidden_states(batch, self._attention.plan(batch)), input_ids

    def _input_ids(self, plan: StepPlan, slots: torch.Tensor) -> torch.Tensor:
        """int64 `[tokens]`: the plan's tokens for extend rows, the last sampled ones for decode rows."""
        last = self._state.last_tokens
        if not plan.tokens:
            return last[slots]
        given = torch.tensor(plan.tokens, dtype=torch.int64).to(self._device, non_blocking=True)
        decode = [row for row in range(plan.rows) if not plan.extend[row]]
        if not decode:
            return given
        input_ids = torch.empty(sum(plan.lengths), dtype=torch.int64, device=self._device)
        at = [_end(plan, row) for row in decode]
        is_given = torch.ones(len(input_ids), dtype=torch.bool)
        is_given[at] = False
        input_ids[is_given.to(self._device)] = given
        input_ids[_to_device(at, self._device)] = last[slots[_to_device(decode, self._device)]]
        return input_ids

    def _sample(self, plan: StepPlan, rows: tuple[int, ...], hidden: torch.Tensor) -> _Outcome:
        logits = self._model.logits(hidden)
        slots = [plan.slots[row] for row in rows]
        device_slots = _to_device(slots, self._device)
        sampling = self._state.plan(slots)
        sampled = self._sampler.sample(logits, device_slots, sampling)
        tokens = self._parallel.broadcast(sampled.tokens)
        if self._parallel.tp_rank != 0:
            self._state.last_tokens.index_copy_(0, device_slots, tokens)
        asked = tuple(row for row in plan.logprobs if plan.sample[row.row])
        measured = None
        if asked:
            index = _to_device([rows.index(row.row) for row in asked], self._device)
            measured = measure(logits[index], tokens[index], asked)
        nan = nan_rows(logits) if self._options.nan_detection else None
        return _Outcome(rows, tokens, sampled.failed_rows, nan, measured, asked)


def _to_device(values: list[int] | tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)


def _end(plan: StepPlan, row: int) -> int:
    """Index of the row's last token among the step's tokens."""
    return sum(plan.lengths[: row + 1]) - 1


def _prompt_spans(plan: StepPlan) -> list[PromptSpan]:
    """The rows whose prompt tokens' log-probabilities are wanted, or whose later chunks' may be."""
    spans = []
    for asked in plan.logprobs:
        row = asked.row
        if asked.prompt_from < 0 or not plan.extend[row]:
            continue
        offset = _end(plan, row) + 1 - plan.lengths[row]
        last = bool(plan.sample[row])
        spans.append(PromptSpan(plan.slots[row], plan.starts[row], offset, plan.lengths[row], last, asked))
    return spans
