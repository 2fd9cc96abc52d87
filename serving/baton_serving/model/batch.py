"""What a model is given for one step: `ForwardBatch`, flat over the new tokens of all rows.

A row is one request in this step. The executor keeps, per slot, the page tables and the last sampled token on the
device; for a step it gathers the rows' table lines and input tokens there and calls `ForwardBatch.build` with them
and with the host-side `starts` and `lengths` of the step plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from baton_serving.kv.staging import to_device


@dataclass(frozen=True)
class ForwardBatch:
    """One step. Rows are in any order; the new tokens of a row stand together, in row order.

    On the host (plain ints, known without asking the device):
      `q_lens[r]`  new tokens of row r, at least 1; a decode row has exactly 1
      `kv_lens[r]` tokens of row r whose KV stands after this step, the new ones included
    On the device:
      `input_ids`   int64 `[tokens]`
      `positions`   int64 `[tokens]`, position of each new token in its request
      `page_tables` one per KV group, in layout order: int32 `[rows, max_pages]`; entry p is the page that holds the
                    request's tokens `p * page_size` and following. Pages that slid out of the group's window, and
                    entries beyond the request's pages, may be anything that is a page id (NULL_PAGE)
      `write_pages` one per KV group: int64 `[tokens]`, page that takes each new token's K and V
      `write_offsets` int64 `[tokens]`, slot within that page
      `logits_rows` int64 `[n]`: indices into the flat tokens for which logits are wanted, in any order; the last new
                    token of every row that samples, and every token whose next one needs a log-probability. None: all
      `device_lens` int32 `[rows]`: `kv_lens` once more, or None where they were not needed on the device
      `device_q_lens` int32 `[rows]`: `q_lens` as they are, where those on the host only bound the tokens; else None

    The pages of all new tokens must be allocated, hold no other request's tokens from `kv_len - q_len` on, and all
    page copies of the step must be done before the model runs.
    """

    q_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    input_ids: torch.Tensor
    positions: torch.Tensor
    page_tables: tuple[torch.Tensor, ...]
    write_pages: tuple[torch.Tensor, ...]
    write_offsets: torch.Tensor
    logits_rows: torch.Tensor | None
    device_lens: torch.Tensor | None = None
    device_q_lens: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        return self.input_ids.shape[0]

    @staticmethod
    def build(
        starts: Sequence[int],
        lengths: Sequence[int],
        input_ids: torch.Tensor,
        page_tables: Sequence[torch.Tensor],
        page_size: int,
        logits_rows: torch.Tensor | None = None,
    ) -> ForwardBatch:
        """Derive positions and write places from `starts` (tokens before this step) and `lengths` (new tokens).

        `input_ids` decides the device; `page_tables` are there already. Without `logits_rows`, every row's last new
        token gets logits, in row order.
        """
        device = input_ids.device
        counts = np.array(lengths, dtype=np.int64)
        ends = counts.cumsum()
        shift = np.array(starts, dtype=np.int64) - (ends - counts)
        host = np.empty((2, counts.sum()), dtype=np.int64)
        host[0] = np.arange(host.shape[1]) + np.repeat(shift, counts)
        host[1] = np.repeat(np.arange(len(counts)), counts)
        positions, rows = to_device(torch.from_numpy(host), device)
        columns = positions // page_size
        return ForwardBatch(
            q_lens=tuple(lengths),
            kv_lens=tuple(start + length for start, length in zip(starts, lengths, strict=True)),
            input_ids=input_ids,
            positions=positions,
            page_tables=tuple(page_tables),
            write_pages=tuple(table[rows, columns].long() for table in page_tables),
            write_offsets=positions % page_size,
            logits_rows=to_device(torch.from_numpy(ends - 1), device) if logits_rows is None else logits_rows,
        )

    @staticmethod
    def decode(
        input_ids: torch.Tensor, positions: torch.Tensor, page_tables: Sequence[torch.Tensor], page_size: int
    ) -> ForwardBatch:
        """One token per row, every one with logits, from device tensors alone, so that a CUDA graph may hold it.

        The host does not know the rows' lengths then: `kv_lens` is 1 for each, and `device_lens` counts.
        """
        columns = (positions // page_size).unsqueeze(1)
        ones = (1,) * input_ids.shape[0]
        return ForwardBatch(
            q_lens=ones,
            kv_lens=ones,
            input_ids=input_ids,
            positions=positions,
            page_tables=tuple(page_tables),
            write_pages=tuple(table.gather(1, columns).squeeze(1).long() for table in page_tables),
            write_offsets=positions % page_size,
            logits_rows=None,
            device_lens=(positions + 1).int(),
        )

    @staticmethod
    def short(
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        rows: torch.Tensor,
        lengths: torch.Tensor,
        page_tables: Sequence[torch.Tensor],
        page_size: int,
        logits_rows: torch.Tensor,
    ) -> ForwardBatch:
        """Rows of any lengths from device tensors alone, so that a CUDA graph may hold it.

        `rows` int64 `[tokens]` is the row of each token, `lengths` int64 `[2, rows]` new tokens and tokens altogether
        of each row. Tokens that fill the batch up belong to a row of no new tokens.
        """
        columns = positions // page_size
        count = lengths.shape[1]
        return ForwardBatch(
            q_lens=(input_ids.shape[0], *(0,) * (count - 1)),
            kv_lens=(1,) * count,
            input_ids=input_ids,
            positions=positions,
            page_tables=tuple(page_tables),
            write_pages=tuple(table[rows, columns].long() for table in page_tables),
            write_offsets=positions % page_size,
            logits_rows=logits_rows,
            device_lens=lengths[1].int(),
            device_q_lens=lengths[0].int(),
        )
