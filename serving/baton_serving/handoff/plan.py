"""Where every byte of a handoff goes: pages of one rank into pages of another, as merged contiguous runs.

Pure arithmetic on offsets. A page is `[kv_heads, layers, cell]` with `cell = (K, V)` of `page_size` tokens, so a change
of tensor parallel size cuts heads out of a page and a change of pipeline size cuts layer slots out of a head. The runs
inside one page are the same for every page of a group: they are planned once and laid over the page lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from baton_serving.handoff.layout import PeerDescriptor, RankDescriptor, is_writer

Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Runs:
    """Parallel int64 arrays: copy `nbytes[i]` bytes from `src[i]` to `dst[i]` (offsets from each side's page 0)."""

    src: Offsets
    dst: Offsets
    nbytes: Offsets

    def __len__(self) -> int:
        return len(self.nbytes)

    @property
    def total(self) -> int:
        return int(self.nbytes.sum())

    def __getitem__(self, part: slice) -> Runs:
        return Runs(self.src[part], self.dst[part], self.nbytes[part])


def empty_runs() -> Runs:
    nothing = np.zeros(0, dtype=np.int64)
    return Runs(nothing, nothing, nothing)


def join_runs(parts: list[Runs]) -> Runs:
    """One list of runs after the other, merged where they touch."""
    if len(parts) < 2:
        return parts[0] if parts else empty_runs()
    return merge(
        Runs(
            np.concatenate([part.src for part in parts]),
            np.concatenate([part.dst for part in parts]),
            np.concatenate([part.nbytes for part in parts]),
        )
    )


def merge(runs: Runs) -> Runs:
    """Join neighbours in list order that are contiguous on both sides."""
    if len(runs) < 2:
        return runs
    end = runs.nbytes[:-1]
    touches = (runs.src[:-1] + end == runs.src[1:]) & (runs.dst[:-1] + end == runs.dst[1:])
    starts = np.flatnonzero(np.concatenate(([True], ~touches)))
    return Runs(runs.src[starts], runs.dst[starts], np.add.reduceat(runs.nbytes, starts))


def tickets(runs: Runs, max_blocks: int, max_bytes: int) -> Iterator[Runs]:
    """Cut runs, in order, into parts of at most `max_blocks` runs and `max_bytes` bytes; longer runs are split."""
    pieces = -(-runs.nbytes // max_bytes)
    if len(runs) and int(pieces.max()) > 1:
        row = np.repeat(np.arange(len(runs)), pieces)
        ahead = (np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * max_bytes
        sizes = np.minimum(runs.nbytes[row] - ahead, max_bytes)
        runs = Runs(runs.src[row] + ahead, runs.dst[row] + ahead, sizes)
    ends = np.cumsum(runs.nbytes)
    first = 0
    while first < len(runs):
        before = int(ends[first] - runs.nbytes[first])
        last = int(np.searchsorted(ends, before + max_bytes, side="right"))
        last = min(max(last, first + 1), first + max_blocks)
        yield runs[first:last]
        first = last


def page_runs(
    source: PeerDescriptor, source_rank: RankDescriptor, target: PeerDescriptor, target_rank: RankDescriptor, group: int
) -> Runs:
    """Runs within one page of `group` that `source_rank` owes `target_rank`, offsets from the page's start.

    Empty when the ranks share no head or layer, or when another replica of the heads is the writer.
    """
    if not is_writer(source.layout, source.tp_size, source_rank):
        return empty_runs()
    heads = range(max(source_rank.heads[0], target_rank.heads[0]), min(source_rank.heads[1], target_rank.heads[1]))
    source_slots = source_rank.slots(source.layout, group)
    target_slots = target_rank.slots(target.layout, group)
    layers = [layer for layer in source_slots if layer in target_slots]
    if not heads or not layers:
        return empty_runs()
    if (
        source_rank.shape == target_rank.shape
        and source_rank.heads == target_rank.heads
        and (source_slots == target_slots)
    ):
        whole = source_rank.shape.page_bytes
        return Runs(*(np.array([value], dtype=np.int64) for value in (0, 0, whole)))
    cell = source_rank.shape.cell_bytes
    src_slot = np.array([source_slots.index(layer) for layer in layers], dtype=np.int64)
    dst_slot = np.array([target_slots.index(layer) for layer in layers], dtype=np.int64)
    head = np.arange(heads.start, heads.stop, dtype=np.int64)[:, None]
    src = (head - source_rank.heads[0]) * source_rank.shape.head_bytes + src_slot * cell
    dst = (head - target_rank.heads[0]) * target_rank.shape.head_bytes + dst_slot * cell
    return merge(Runs(src.ravel(), dst.ravel(), np.full(src.size, cell, dtype=np.int64)))


def over_pages(
    runs: Runs, source_bytes: int, source_pages: list[int], target_bytes: int, target_pages: list[int]
) -> Runs:
    """Lay the runs of one page over page lists of equal length; merges neighbouring whole pages."""
    if not len(runs) or not source_pages:
        return empty_runs()
    src = np.asarray(source_pages, dtype=np.int64)[:, None] * source_bytes + runs.src
    dst = np.asarray(target_pages, dtype=np.int64)[:, None] * target_bytes + runs.dst
    if src.shape != dst.shape:
        raise ValueError(f"{len(source_pages)} source pages for {len(target_pages)} target pages")
    return merge(Runs(src.ravel(), dst.ravel(), np.tile(runs.nbytes, len(source_pages))))


class CopyPlanner:
    """What one source rank owes each rank of one target; remembers the runs within a page per group."""

    def __init__(self, source: PeerDescriptor, source_index: int, target: PeerDescriptor) -> None:
        self._source_rank = source.ranks[source_index]
        self._target_ranks = target.ranks
        self._page: dict[tuple[int, int], Runs] = {}
        for index, rank in enumerate(target.ranks):
            for group in range(len(source.layout.groups)):
                runs = page_runs(source, self._source_rank, target, rank, group)
                if len(runs):
                    self._page[index, group] = runs

    def targets(self) -> list[int]:
        """Indices of the target ranks that are owed anything."""
        return sorted({index for index, _ in self._page})

    def page(self, target: int, group: int) -> Runs:
        return self._page.get((target, group), empty_runs())

    def runs(self, target: int, group: int, source_pages: list[int], target_pages: list[int]) -> Runs:
        """Runs for `source_pages[i]` → `target_pages[i]`, offsets from page 0 of each rank."""
        return over_pages(
            self.page(target, group),
            self._source_rank.shape.page_bytes,
            source_pages,
            self._target_ranks[target].shape.page_bytes,
            target_pages,
        )
