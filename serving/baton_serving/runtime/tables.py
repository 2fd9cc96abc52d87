"""Device-side tables of one rank: where each slot's KV lies and what its last token was.

The host never reads these back. A step is launched from them, so the next step needs nothing that is still being
computed: its input tokens are gathered from `last_token` on the device.
"""

from __future__ import annotations

import torch

from baton_serving.kv.layout import NULL_PAGE
from baton_serving.scheduling.step import PageWrite, SlotSetup


class SlotTables:
    """`pages[g]` is int32 [slots, max_pages] for KV group g; `last_token` is int64 [slots]."""

    def __init__(self, slots: int, groups: int, max_pages: int, device: torch.device) -> None:
        self.device = device
        self.pages = [
            torch.full((slots, max_pages), NULL_PAGE, dtype=torch.int32, device=device) for _ in range(groups)
        ]
        self.last_token = torch.zeros(slots, dtype=torch.int64, device=device)

    def write_pages(self, writes: list[PageWrite]) -> None:
        """Apply a step's page table changes: one scatter per group, whatever the number of requests."""
        for group, table in enumerate(self.pages):
            mine = [write for write in writes if write.group == group]
            if not mine:
                continue
            rows: list[int] = []
            columns: list[int] = []
            values: list[int] = []
            for write in mine:
                count = len(write.pages)
                rows.extend([write.slot] * count)
                columns.extend(range(write.start, write.start + count))
                values.extend(write.pages)
            index = torch.tensor([rows, columns], dtype=torch.int64).to(self.device, non_blocking=True)
            value = torch.tensor(values, dtype=torch.int32).to(self.device, non_blocking=True)
            table[index[0], index[1]] = value

    def write_last_tokens(self, setups: list[SlotSetup]) -> None:
        """Set the input of the next decode row for slots whose request already has output tokens."""
        resumed = [setup for setup in setups if setup.output]
        if not resumed:
            return
        slots = torch.tensor([setup.slot for setup in resumed], dtype=torch.int64).to(self.device, non_blocking=True)
        last = torch.tensor([setup.output[-1] for setup in resumed], dtype=torch.int64)
        self.last_token[slots] = last.to(self.device, non_blocking=True)
