"""Log-probabilities of tokens, their best alternatives and asked-for ids, brought to the host in one transfer.

They are those of the model's own distribution: natural logarithm of the softmax of the logits as the model gave them,
before penalties, bias, temperature and filters, as OpenAI and vLLM report them (SGLang divides by the temperature
unless told otherwise). A token that was drawn against the model's odds so shows its true surprise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baton_serving.kv.staging import upload
from baton_serving.sampling.params import LogprobRow, TokenLogprobs

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


def measure_prompts(
    head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, asked: Sequence[LogprobRow]
) -> Measured:
    """Log-probabilities of prompt tokens `targets` int64 [n], each from the hidden state before it, `hidden` [n, h].

    `head` maps hidden states to logits; it sees at most CHUNK_ROWS of them at a time. `asked[i]` is the row of the step
    that entry i belongs to.
    """
    top = max(row.top for row in asked)
    ids = _padded_ids(asked, hidden.device)
    chunks = [slice(at, at + CHUNK_ROWS) for at in range(0, targets.shape[0], CHUNK_ROWS)]
    packed = torch.cat([_pack(head(hidden[chunk]), targets[chunk], top, ids[chunk]) for chunk in chunks])
    return Measured(packed, tuple(asked), top)
