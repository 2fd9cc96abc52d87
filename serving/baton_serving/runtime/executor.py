"""One rank's device work: a `StepPlan` in, tokens out. The same on every rank; rank 0's tokens are the ones that count.

`launch` queues a step on the device and returns at once where the device allows it (CUDA); `PendingStep.result` waits.
Nothing that a step needs comes from the host's view of an earlier step's outcome, so steps can be launched ahead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from baton_serving.kv.pool import KVPool
from baton_serving.kv.staging import to_device, upload, upload_parts
from baton_serving.model.attention import AttentionPlanner
from baton_serving.model.batch import ForwardBatch
from baton_serving.model.decoder import CausalModel
from baton_serving.model.parallel import ParallelState
from baton_serving.runtime.decode_graphs import DecodeGraphs, GraphStep
from baton_serving.runtime.short_graphs import ShortGraphs
from baton_serving.runtime.tables import PageTables
from baton_serving.sampling.logprobs import Measured, measure, measure_prompts
from baton_serving.sampling.params import LogprobRow
from baton_serving.sampling.processors import LogitProcessor
from baton_serving.sampling.sampler import Sampled, Sampler, nan_rows
from baton_serving.sampling.state import SamplingPlan, SamplingState
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
    """Device tensors of one step and their copies on the host. Once `event` has passed (None: already) these are
    complete, and so is all else that the step did: a peer may be sent the pages it wrote."""

    host: list[torch.Tensor]
    event: torch.cuda.Event | None

    @classmethod
    def of(cls, tensors: list[torch.Tensor], device: torch.device) -> _Fetch:
        if device.type == "cpu":
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


class PendingStep:
    """A launched step; `result` may be asked for once."""

    def __init__(
        self,
        plan: StepPlan,
        outcome: _Outcome | None,
        prompts: Measured | None,
        device: torch.device,
        embeddings: torch.Tensor | None = None,
    ) -> None:
        self._plan = plan
        self._outcome = outcome
        self._prompts = prompts
        self._embedded = embeddings is not None
        tensors: list[torch.Tensor] = []
        if outcome is not None:
            tensors.append(outcome.tokens)
            if outcome.nan is not None:
                tensors.append(outcome.nan)
            if outcome.measured is not None:
                tensors.append(outcome.measured.packed)
        if prompts is not None:
            tensors.append(prompts.packed)
        if embeddings is not None:
            tensors.append(embeddings)
        self._fetch = _Fetch.of(tensors, device)

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
                asked_rows = (asked.row for asked in outcome.measured.asked)
                result.logprobs = dict(zip(asked_rows, outcome.measured.unpack(next(host)), strict=True))
        if self._prompts is not None:
            for asked, entry in zip(self._prompts.asked, self._prompts.unpack(next(host)), strict=True):
                result.prompt_logprobs.setdefault(asked.row, []).append(entry)
        if self._embedded:
            result.embeddings = dict(zip(self._plan.embed, next(host).tolist(), strict=True))
        return result


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
        self._graphs: DecodeGraphs | None = None
        self._short: ShortGraphs | None = None
        self._graph_sizes: Sequence[int] = ()

    def drop_graphs(self) -> None:
        """Forget the CUDA graphs: memory that they point to is about to go."""
        self._graphs = None
        self._short = None

    def capture_again(self) -> None:
        """Capture what `drop_graphs` dropped."""
        self.capture(self._graph_sizes)

    @property
    def attention_names(self) -> tuple[str, str]:
        """The attention back ends in use for prefill and decode."""
        return self._attention.names

    @torch.inference_mode()
    def capture(self, sizes: Sequence[int]) -> None:
        """Have decode steps replayed from CUDA graphs of these batch sizes, and short ones from graphs of their own,
        where model and attention allow it; none without `sizes`."""
        self._graph_sizes = sizes
        if not sizes or not self._model.capturable:
            return
        memory = torch.cuda.graph_pool_handle()
        parts = (self._model, self._attention, self._tables, self._state, self._sampler, self._pool.shape.page_size)
        if self._attention.decode_capturable:
            self._graphs = DecodeGraphs(*parts, sizes, memory)
        if self._attention.short_capturable:
            self._short = ShortGraphs(*parts, memory)

    @property
    def immediate(self) -> bool:
        """Whether a step is over when `launch` returns."""
        return self._device.type == "cpu"

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PendingStep:
        """Queue one step: page copies and tables first, then the forward pass, then sampling."""
        self._pool.copy_pages(plan.copies)
        self._tables.write(plan.page_writes)
        # Without decode rows, the forward pass needs nothing of the sampling state: the device need not wait for it.
        late = all(plan.extend)
        if not late:
            self._state.set_up(plan.setups)
        outcome: _Outcome | None = None
        if self._graphs is not None and plan.rows <= self._graphs.largest and all(plan.sample) and not any(plan.extend):
            outcome = self._graphed(plan, self._graphs.launch(plan.slots, plan.starts))
            return PendingStep(plan, outcome, None, self._device)
        if self._short is not None and self._short.takes(plan):
            step = self._short.launch(plan)
            if late:
                self._state.set_up(plan.setups)
            return PendingStep(plan, self._graphed(plan, step), None, self._device)
        rows = tuple(row for row in range(plan.rows) if plan.sample[row])
        spans = _prompt_spans(plan)
        wanted = [index for span in spans for index in span.indices]
        hidden = self._forward(plan, _row_ends(plan, rows) + wanted + _row_ends(plan, plan.embed))
        if late:
            self._state.set_up(plan.setups)
        prompts = None
        if spans:
            asked = [span.asked for span in spans for _ in span.indices]
            targets = _upload([target for span in spans for target in span.targets], self._device)
            prompts = measure_prompts(self._model.logits, hidden[len(rows) :][: len(wanted)], targets, asked)
        outcome = None
        if rows:
            sampled_slots = [plan.slots[row] for row in rows]
            logits = self._model.logits(hidden[: len(rows)])
            outcome = self._sample(
                plan, rows, logits, _upload(sampled_slots, self._device), self._state.plan(sampled_slots)
            )
        return PendingStep(plan, outcome, prompts, self._device, _unit_vectors(hidden[len(rows) + len(wanted) :]))

    def _graphed(self, plan: StepPlan, step: GraphStep) -> _Outcome:
        """Sample a step that a graph ran up to its logits, by a graph as well if one will do.

        Graphs hold nobody else's code: equal logits give equal tokens on every rank, and nothing is broadcast.
        """
        rows = tuple(range(plan.rows))
        sampling = self._state.plan(plan.slots)
        tokens = step.sample(sampling.features)
        if tokens is None:
            return self._sample(plan, rows, step.logits, step.slots, sampling)
        return self._outcome(plan, rows, step.logits, Sampled(tokens))

    def _forward(self, plan: StepPlan, wanted: list[int]) -> torch.Tensor:
        """Hidden states of the step's tokens at the indices `wanted`, in that order."""
        slots, places, given = upload_parts((plan.slots, wanted, plan.tokens), self._device)
        longest = max(start + length for start, length in zip(plan.starts, plan.lengths, strict=True))
        batch = ForwardBatch.build(
            plan.starts,
            plan.lengths,
            self._input_ids(plan, slots, given),
            self._tables.rows(slots, -(-longest // self._pool.shape.page_size)),
            self._pool.shape.page_size,
            places,
        )
        return self._model.hidden_states(batch, self._attention.plan(batch))

    def _input_ids(self, plan: StepPlan, slots: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """int64 `[tokens]`: the plan's tokens, `given`, for extend rows, the last sampled ones for decode rows."""
        last = self._state.last_tokens
        if not plan.tokens:
            return last[slots]
        decode = [row for row in range(plan.rows) if not plan.extend[row]]
        if not decode:
            return given
        input_ids = torch.empty(sum(plan.lengths), dtype=torch.int64, device=self._device)
        at = _row_ends(plan, decode)
        is_given = torch.ones(len(input_ids), dtype=torch.bool)
        is_given[at] = False
        input_ids[to_device(is_given.nonzero().flatten(), self._device)] = given
        input_ids[_upload(at, self._device)] = last[slots[_upload(decode, self._device)]]
        return input_ids

    def _sample(
        self,
        plan: StepPlan,
        rows: tuple[int, ...],
        logits: torch.Tensor,
        slots: torch.Tensor,
        sampling: SamplingPlan,
    ) -> _Outcome:
        sampled = self._sampler.sample(logits, slots, sampling)
        tokens = self._parallel.broadcast(sampled.tokens)
        if self._parallel.tp_rank != 0:
            self._state.last_tokens.index_copy_(0, slots, tokens)
        return self._outcome(plan, rows, logits, Sampled(tokens, sampled.failed_rows))

    def _outcome(self, plan: StepPlan, rows: tuple[int, ...], logits: torch.Tensor, sampled: Sampled) -> _Outcome:
        """What is wanted of the sampled `rows` besides their tokens."""
        tokens = sampled.tokens
        asked = tuple(row for row in plan.logprobs if plan.sample[row.row])
        measured = None
        if asked:
            index = _upload([rows.index(row.row) for row in asked], self._device)
            measured = measure(logits[index], tokens[index], asked)
        nan = nan_rows(logits) if self._options.nan_detection else None
        return _Outcome(rows, tokens, sampled.failed_rows, nan, measured)


def _upload(values: Sequence[int], device: torch.device) -> torch.Tensor:
    return upload(values, torch.int64, device)


def _unit_vectors(hidden: torch.Tensor) -> torch.Tensor | None:
    """float32 `[rows, hidden]` of length 1; None when there are no rows."""
    return torch.nn.functional.normalize(hidden.float(), dim=-1) if len(hidden) else None


def _row_ends(plan: StepPlan, rows: Iterable[int]) -> list[int]:
    """Index among the step's tokens of the last token of each of `rows`."""
    ends = list(accumulate(plan.lengths))
    return [ends[row] - 1 for row in rows]


@dataclass(frozen=True)
class _PromptSpan:
    """Prompt tokens `targets` of one row, and the indices among the step's tokens of those that predict them."""

    asked: LogprobRow
    indices: range
    targets: list[int]


def _prompt_spans(plan: StepPlan) -> list[_PromptSpan]:
    """The parts of this step's prompts whose log-probabilities are wanted."""
    asked_rows = [asked for asked in plan.logprobs if asked.prompt_from >= 0]
    if not asked_rows:
        return []
    ends = list(accumulate(plan.lengths))
    given_ends = list(accumulate(n if given else 0 for n, given in zip(plan.lengths, plan.extend, strict=True)))
    spans = []
    for asked in asked_rows:
        row = asked.row
        skipped = asked.prompt_from - plan.starts[row]  # tokens of this row before the first one asked for
        targets = plan.tokens[given_ends[row] - plan.lengths[row] + skipped : given_ends[row]]
        if asked.next_token >= 0:
            targets.append(asked.next_token)
        first = ends[row] - plan.lengths[row] + skipped - 1
        spans.append(_PromptSpan(asked, range(first, first + len(targets)), targets))
    return spans
