"""What the scheduler asks of the executors in one step, and what comes back. Plain data: rank 0 sends it to followers.

Columns are parallel lists over the rows of a step; a row is one request. A row with `extend[i] == 0` is a decode row:
its one input token is the last one sampled for that slot, which the executors hold on the device, so a step can be
launched before the previous one's tokens are known on the host.
"""

from __future__ import annotations

import msgspec

from baton_serving.sampling.params import SamplingParams


class SlotSetup(msgspec.Struct, array_like=True):
    """Sent once when a request gets a slot (first admission, resumption, arrival from a peer).

    `prompt` feeds the repetition penalty and is empty when nothing needs it; `output` are the tokens already
    generated: the last is the input of the next decode row, and their count keys the random numbers.
    """

    slot: int
    params: SamplingParams
    prompt: list[int]
    output: list[int]
    eos_token_ids: list[int] = []


class PageWrite(msgspec.Struct, array_like=True):
    """Set `pages` into the page table row of `slot` in KV group `group`, from page index `start` on."""

    slot: int
    group: int
    start: int
    pages: list[int]


class LogprobRow(msgspec.Struct, array_like=True):
    """Log-probabilities wanted of one row: `top` alternatives per token, `token_ids` always reported besides.

    `prompt_from` is the first prompt position whose own log-probability is wanted of this row (-1: none). Position p is
    predicted by the row's logits at p - 1, so it is never the row's first position; the last wanted one is the row's
    last position, or, when `next_token` is set, the one after it: that is the prompt token which begins the next chunk.
    """

    row: int
    top: int
    prompt_from: int = -1
    token_ids: list[int] = []
    next_token: int = -1


class StepPlan(msgspec.Struct, array_like=True):
    """One step. Order of effects: `copies`, `page_writes` and `setups` first, then the forward pass, then sampling."""

    step: int
    slots: list[int]
    starts: list[int]  # tokens of the request whose KV stands before this step
    lengths: list[int]  # tokens this row computes now (1 for decode)
    extend: list[int]  # 1: input tokens come from `tokens`; 0: decode row
    tokens: list[int]  # input tokens of the extend rows, concatenated in row order
    sample: list[int]  # 1: the row ends in a sampled token; 0: a chunk that is not the last
    setups: list[SlotSetup] = []
    page_writes: list[PageWrite] = []
    copies: list[tuple[int, int]] = []  # (source page, target page), whole blocks
    logprobs: list[LogprobRow] = []
    want_nan_check: bool = False

    @property
    def rows(self) -> int:
        return len(self.slots)


class TokenLogprobs(msgspec.Struct, array_like=True):
    """Log-probability of one token, the best alternatives (id, logprob) in falling order, and the asked-for ids."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = []
    chosen: list[tuple[int, float]] = []


class StepResult(msgspec.Struct, array_like=True):
    """`tokens[i]` is the token sampled for row i, or -1. Log-probabilities by row, for the rows that asked."""

    step: int
    tokens: list[int]
    logprobs: dict[int, TokenLogprobs] = {}
    prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
    nan_rows: list[int] = []
