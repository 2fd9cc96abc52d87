"""Compact device tables for the few slots that need more than numbers: a row is taken on set-up, kept till the next.

Row 0 belongs to nobody. Slots without a row point there, so that one batched gather serves the whole batch: its content
has no effect (neutral penalties, bias 0 on token 0).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from baton_serving.kv.staging import upload


class RowIndex:
    """Which row of a table each slot holds. Plain bookkeeping on the host; rows count from 1."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._free: list[int] = []
        self.height = 1

    def take(self, slot: int) -> int:
        """The row of `slot`: the one it holds, a free one, or a new one at `height`."""
        if slot not in self._rows:
            if self._free:
                self._rows[slot] = self._free.pop()
            else:
                self._rows[slot] = self.height
                self.height += 1
        return self._rows[slot]

    def release(self, slot: int) -> None:
        """Give back the row of `slot`, if it holds one."""
        row = self._rows.pop(slot, None)
        if row is not None:
            self._free.append(row)


class TokenCounts:
    """Per penalised slot: how often each token was generated, and whether the prompt holds it.

    `generated` int32 [rows, vocab], `prompted` bool [rows, vocab]; both grow by doubling, which moves them.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.index = RowIndex()
        self.generated = torch.zeros((1, vocab_size), dtype=torch.int32, device=device)
        self.prompted = torch.zeros((1, vocab_size), dtype=torch.bool, device=device)

    def put(self, slot: int, prompt: Sequence[int], output: Sequence[int]) -> int:
        """Start the counts of `slot` from its prompt and the tokens generated before. Returns its row."""
        row = self.index.take(slot)
        self.generated = _grow(self.generated, self.index.height)
        self.prompted = _grow(self.prompted, self.index.height)
        self.generated[row].zero_()
        self.prompted[row].zero_()
        if prompt:
            self.prompted[row].index_fill_(0, upload(prompt, torch.int64, self.prompted.device), True)
        if output:
            tokens = upload(output, torch.int64, self.generated.device)
            self.generated[row].scatter_add_(0, tokens, torch.ones_like(tokens, dtype=torch.int32))
        return row

    def add(self, rows: Tensor, tokens: Tensor) -> None:
        """Count `tokens` int64 [n] in `rows` int64 [n], on the device."""
        flat = rows * self.generated.shape[1] + tokens
        self.generated.view(-1).scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.int32))


class TokenRows:
    """Per slot that needs one: a short list of token ids with a value each, padded to the widest.

    `ids` int64 [rows, width], `values` float32 [rows, width]. Padding repeats the row's first id with value 0.
    """

    def __init__(self, device: torch.device) -> None:
        self.index = RowIndex()
        self.ids = torch.zeros((1, 1), dtype=torch.int64, device=device)
        self.values = torch.zeros((1, 1), dtype=torch.float32, device=device)

    def put(self, slot: int, ids: Sequence[int], values: Sequence[float]) -> int:
        """Set the list of `slot`, which must not be empty. Returns its row."""
        row = self.index.take(slot)
        width = self.ids.shape[1]
        if len(ids) > width:
            extra = max(len(ids), 2 * width) - width
            self.ids = torch.cat([self.ids, self.ids[:, :1].expand(-1, extra)], dim=1)
            self.values = torch.nn.functional.pad(self.values, (0, extra))
            width += extra
        self.ids = _grow(self.ids, self.index.height)
        self.values = _grow(self.values, self.index.height)
        padding = width - len(ids)
        self.ids[row] = upload([*ids, *[ids[0]] * padding], torch.int64, self.ids.device)
        self.values[row] = upload([*values, *[0.0] * padding], torch.float32, self.values.device)
        return row


def _grow(table: Tensor, height: int) -> Tensor:
    """`table` itself, or a copy with at least `height` rows, the new ones 0."""
    rows = table.shape[0]
    if height <= rows:
        return table
    grown = table.new_zeros((max(height, 2 * rows), *table.shape[1:]))
    grown[:rows] = table
    return grown
