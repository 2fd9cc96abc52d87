"""What the scheduler asks of the executors in one step, and what comes back. Plain data: rank 0 sends it to followers.

Columns are parallel lists over the rows of a step; a row is one request. A row with `extend[i] == 0` is a decode row:
its one input token is the last one sampled for that slot, which the executors hold on the device, so a step can be
launched before the previous one's tokens are known on the host.
"""

from __future__ import annotations

import msgspec

from baton_serving.sampling.params import LogprobRow as LogprobRow
from baton_serving.sampling.params import SlotSetup as SlotSetup
from baton_serving.sampling.params import TokenLogprobs as TokenLogprobs


class PageWrite(msgspec.Struct, array_like=True):
    """Set `pages` into the page table row of `slot` in KV group `group`, from page index `start` on."""

    slot: int
    group: int
    start: int
    pages: list[int]


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
    embed: list[int] = []  # rows whose last hidden state is wanted

    @property
    def rows(self) -> int:
        return len(self.slots)


class StepResult(msgspec.Struct, array_like=True):
    """`tokens[i]` is the token sampled for row i, or -1. Log-probabilities by row, for the rows that asked.

    `failed_rows` are rows whose custom logit processor failed; `nan_rows` those whose logits held a NaN. `embeddings`
    are the unit vectors of the rows in the plan's `embed`.
    """

    step: int
    tokens: list[int]
    logprobs: dict[int, TokenLogprobs] = {}
    prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
    nan_rows: list[int] = []
    failed_rows: list[int] = []
    embeddings: dict[int, list[float]] = {}
