"""Page tables of one rank on the device: which pages hold each slot's KV. The host never reads them back."""

from __future__ import annotations

import torch

from baton_serving.kv.layout import NULL_PAGE
from baton_serving.kv.staging import upload_parts
from baton_serving.scheduling.step import PageWrite


class PageTables:
    """One int32 table `[slots, max_pages]` per KV group, in layout order."""

    def __init__(self, slots: int, groups: int, max_pages: int, device: torch.device) -> None:
        self.max_pages = max_pages
        self._device = device
        self._tables = [
            torch.full((slots, max_pages), NULL_PAGE, dtype=torch.int32, device=device) for _ in range(groups)
        ]

    def write(self, writes: list[PageWrite]) -> None:
        """Apply a step's changes: one scatter per group, whatever the number of requests."""
        for group, table in enumerate(self._tables):
            places: list[int] = []
            pages: list[int] = []
            for write in writes:
                if write.group == group:
                    first = write.slot * self.max_pages + write.start
                    places.extend(range(first, first + len(write.pages)))
                    pages.extend(write.pages)
            if places:
                place, page = upload_parts((places, pages), self._device)
                table.view(-1).index_copy_(0, place, page.int())

    def rows(self, slots: torch.Tensor, pages: int) -> list[torch.Tensor]:
        """The tables' lines for `slots`, first `pages` entries: int32 `[len(slots), pages]` per group."""
        return [table[:, :pages].index_select(0, slots) for table in self._tables]
