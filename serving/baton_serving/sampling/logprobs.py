"""Log-probabilities of tokens, their best alternatives and asked-for ids, brought to the host in one transfer.

They are those of the model's own distribution: natural logarithm of the softmax of the logits as the model gave them,
before penalties, bias, temperature and filters, as OpenAI and vLLM report them (SGLang divides by the temperature
unless told otherwise). A token that was drawn against the model's odds so shows its true surprise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baton_serving.sampling.params import LogprobRow, TokenLogprobs
from baton_serving.sampling.tables import upload

CHUNK_ROWS = 256  # at a vocabulary of 256k this bounds the float32 logits of a prompt to 256 MiB


@dataclass(frozen=True)
class Measured:
    """Log-probabilities still on the device. Copy `packed` to the host (with what else goes there), then `unpack` it.

    `packed` int32 [n, 2 + 2 * top + ids]: bits of own, best and asked-for log-probabilities, then own and best ids.
    `asked[i]` is what row i asked for.
    """

    packed: Tensor
    asked: tuple[LogprobRow, ...]
    top: int

    def unpack(self, host: Tensor) -> list[TokenLogprobs]:
        """One entry per row of `packed`; `host` is its copy on the host."""
        ids_from = host.shape[1] - 1 - self.top
        values = host[:, :ids_from].contiguous().view(torch.float32).tolist()
        tokens = host[:, ids_from:].tolist()
        return [self._entry(*row) for row in zip(self.asked, values, tokens, strict=True)]

    def _entry(self, asked: LogprobRow, values: list[float], tokens: list[int]) -> TokenLogprobs:
        best = list(zip(tokens[1:], values[1 : 1 + self.top], strict=True))
        chosen = list(zip(asked.token_ids, values[1 + self.top :], strict=False))
        return TokenLogprobs(tokens[0], values[0], best[: asked.top], chosen)


def measure(logits: Tensor, tokens: Tensor, asked: Sequence[LogprobRow]) -> Measured:
    """Log-probabilities of `tokens` int64 [n] under `logits` [n, vocab], row i as `asked[i]` wants.

    n is at least 1, and no row asks for more alternatives than there are tokens.
    """
    top = max(row.top for row in asked)
    ids = _padded_ids(asked, logits.device)
    return Measured(_pack(logits, tokens, top, ids), tuple(asked), top)


def _padded_ids(asked: Sequence[LogprobRow], device: torch.device) -> Tensor:
    """int64 [n, widest]: the asked-for ids, padded with token 0."""
    width = max(len(row.token_ids) for row in asked)
    if width == 0:
        return torch.empty((len(asked), 0), dtype=torch.int64, device=device)
    return upload([row.token_ids + [0] * (width - len(row.token_ids)) for row in asked], torch.int64, device)


def _pack(logits: Tensor, tokens: Tensor, top: int, ids: Tensor) -> Tensor:
    logits = logits.float()
    best, best_ids = logits.topk(top, dim=-1)
    own = tokens.unsqueeze(1)
    values = torch.cat([logits.gather(1, own), best, logits.gather(1, ids)], dim=1)
    values = values - logits.logsumexp(dim=-1, keepdim=True)
    return torch.cat([values.view(torch.int32), own.int(), best_ids.int()], dim=1)


@dataclass(frozen=True)
class PromptSpan:
    """The part of a prompt that one step computes: input tokens `offset` to `end` of the step.

    `start` is the position of the first of them in its request; `last` says that the prompt ends here.
    """

    slot: int
    start: int
    offset: int
    length: int
    last: bool
    asked: LogprobRow

    @property
    def end(self) -> int:
        return self.offset + self.length

    @property
    def first(self) -> int:
        """First position in the request whose log-probability is wanted."""
        return max(self.asked.prompt_from, self.start)

    @property
    def wanted(self) -> int:
        """How many positions are wanted; they are the last ones of the span."""
        return 0 if self.asked.prompt_from < 0 else max(0, self.start + self.length - self.first)


@dataclass(frozen=True)
class MeasuredPrompts:
    """Prompt log-probabilities on the device. The spans in `blind` begin with a token that nothing precedes."""

    measured: Measured
    spans: tuple[PromptSpan, ...]
    blind: frozenset[int]

    def unpack(self, host: Tensor) -> dict[int, list[TokenLogprobs]]:
        """By row of the step, the wanted positions in order; `host` is the copy of `measured.packed` on the host.

        The first token of all has log-probability NaN and no alternatives, so that entries and positions line up.
        """
        entries = iter(self.measured.unpack(host))
        result: dict[int, list[TokenLogprobs]] = {}
        for index, span in enumerate(self.spans):
            row = [next(entries) for _ in range(span.wanted)]
            if index in self.blind:
                row[0] = TokenLogprobs(row[0].token_id, math.nan)
            result[span.asked.row] = row
        return result


class PromptLogprobs:
    """Measures the tokens of prompts, chunk by chunk.

    A token's log-probability comes from the hidden state one position earlier, which for the first token of a chunk is
    the last of the chunk before: that one is kept, by slot, until the prompt ends. So the scheduler must compute the
    position before the first wanted one too (no prefix hit may cover it), and each chunk of such a prompt is a span
    here.
    `head` maps hidden states [n, hidden] to logits [n, vocab]; it is called on at most CHUNK_ROWS rows at a time.
    """

    def __init__(self, head: Callable[[Tensor], Tensor]) -> None:
        self._head = head
        self._kept: dict[int, Tensor] = {}

    @property
    def kept_slots(self) -> int:
        """How many prompts are between chunks."""
        return len(self._kept)

    def forget(self, slot: int) -> None:
        """The slot was given to another request."""
        self._kept.pop(slot, None)

    def measure(self, hidden: Tensor, tokens: Tensor, spans: Sequence[PromptSpan]) -> MeasuredPrompts | None:
        """Measure the wanted positions of `spans`; None when there are none.

        `hidden` [t, hidden] are the step's final hidden states, `tokens` int64 [t] its input tokens.
        """
        wanted = tuple(span for span in spans if span.wanted)
        blind = frozenset(i for i, span in enumerate(wanted) if self._is_blind(span))
        states = [self._states_before(hidden, span) for span in wanted]
        for span in spans:
            self._keep(hidden, span)
        if not wanted:
            return None
        targets = torch.cat([tokens[span.end - span.wanted : span.end] for span in wanted])
        asked = tuple(span.asked for span in wanted for _ in range(span.wanted))
        top = max(span.asked.top for span in wanted)
        packed = self._pack_in_chunks(torch.cat(states), targets, top, _padded_ids(asked, hidden.device))
        return MeasuredPrompts(Measured(packed, asked, top), wanted, blind)

    def _pack_in_chunks(self, states: Tensor, targets: Tensor, top: int, ids: Tensor) -> Tensor:
        chunks = [slice(at, at + CHUNK_ROWS) for at in range(0, targets.shape[0], CHUNK_ROWS)]
        return torch.cat([_pack(self._head(states[chunk]), targets[chunk], top, ids[chunk]) for chunk in chunks])

    def _states_before(self, hidden: Tensor, span: PromptSpan) -> Tensor:
        """[wanted, hidden]: the state one position before each wanted one."""
        from_row = span.end - span.wanted - 1
        if span.first > span.start:
            return hidden[from_row : span.end - 1]
        kept = self._kept.get(span.slot, hidden[span.offset])
        return torch.cat([kept.unsqueeze(0), hidden[span.offset : span.end - 1]])

    def _is_blind(self, span: PromptSpan) -> bool:
        return span.first == span.start and (span.start == 0 or span.slot not in self._kept)

    def _keep(self, hidden: Tensor, span: PromptSpan) -> None:
        if span.last:
            self.forget(span.slot)
        else:
            self._kept[span.slot] = hidden[span.end - 1].clone()
