"""Runs a loaded model on a page pool the way a worker does, for tests that compare its logits."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch

from baton_serving.kv.pool import KVPool
from baton_serving.model.attention import AttentionPlanner
from baton_serving.model.batch import ForwardBatch
from baton_serving.model.options import LoadedModel


class PagedRunner:
    """Requests by name, each with its own shuffled pages per KV group.

    A page that slid out of its group's window leaves the table and is filled with NaN, and so is all memory that no
    token was written to: whatever reads it shows in the logits.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        pages: int = 400,
        tp_size: int = 1,
        seed: int = 0,
        device: torch.device | None = None,
        backends: tuple[str, str] = ("auto", "auto"),
    ) -> None:
        self._device = device or torch.device("cpu")
        self.loaded = loaded
        layout = loaded.kv_layout
        self.pool = KVPool(layout.rank_shape(tp_size), layout.groups, pages, self._device)
        for page in range(pages + 1):
            self._poison(page)
        self.planner = AttentionPlanner(self.pool, loaded.heads, *backends)
        self._free = list(range(1, pages + 1))
        random.Random(seed).shuffle(self._free)
        self._lengths: dict[str, int] = {}
        self._pages: dict[str, list[list[int]]] = {}

    def _poison(self, page: int) -> None:
        self.pool.page_bytes(page).fill_(0xFF)

    @torch.inference_mode()
    def step(self, rows: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
        """Give each named request its next tokens; returns the logits `[new tokens, vocab]` of all of them."""
        lengths = [len(tokens) for tokens in rows.values()]
        starts = [self._lengths.get(name, 0) for name in rows]
        for name, tokens in rows.items():
            self._grow(name, len(tokens))
        batch = ForwardBatch.build(
            starts,
            lengths,
            torch.tensor([token for tokens in rows.values() for token in tokens], device=self._device),
            [self._table(list(rows), group) for group in range(len(self.pool.groups))],
            self.pool.shape.page_size,
            torch.arange(sum(lengths), device=self._device),
        )
        model = self.loaded.model
        logits = model.logits(model.hidden_states(batch, self.planner.plan(batch)))
        for name in rows:
            self._slide(name)
        return dict(zip(rows, torch.split(logits, lengths), strict=True))

    def _grow(self, name: str, count: int) -> None:
        self._lengths[name] = self._lengths.get(name, 0) + count
        pages = self._pages.setdefault(name, [[] for _ in self.pool.groups])
        for owned in pages:
            while len(owned) * self.pool.shape.page_size < self._lengths[name]:
                owned.append(self._free.pop())

    def _slide(self, name: str) -> None:
        size = self.pool.shape.page_size
        for owned, group in zip(self._pages[name], self.pool.groups, strict=True):
            seen_from = 0 if group.window is None else self._lengths[name] - group.window + 1
            for index in range(max(0, seen_from) // size):
                if owned[index]:
                    self._poison(owned[index])
                    self._free.insert(0, owned[index])
                    owned[index] = 0

    def _table(self, names: Sequence[str], group: int) -> torch.Tensor:
        owned = [self._pages[name][group] for name in names]
        width = max(len(pages) for pages in owned)
        table = torch.tensor([pages + [0] * (width - len(pages)) for pages in owned], dtype=torch.int32)
        return table.to(self._device)
