"""Page hashes for `--disaggregation-verify`: what a source rank owed a target rank in one page, hashed on both sides.

Both sides hash the same runs in the same order, so the hashes agree whatever the two tensor or pipeline sizes are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import xxhash

from baton_serving.handoff.backends.base import PoolMemory
from baton_serving.handoff.layout import RankDescriptor
from baton_serving.handoff.plan import CopyPlanner, page_runs
from baton_serving.handoff.protocol import PageDigest

if TYPE_CHECKING:
    from baton_serving.handoff.ranks import Introduce, PageCopy


def sent_digests(
    memory: PoolMemory, rank: int, planner: CopyPlanner, slice_: RankDescriptor, copies: Iterable[PageCopy]
) -> list[PageDigest]:
    """Hashes of what source rank `rank` sends, over its own pages."""
    found = []
    for copy in copies:
        for target in planner.targets():
            runs = planner.page(target, copy.group)
            spans = list(zip(runs.src.tolist(), runs.nbytes.tolist(), strict=True))
            for index, page in zip(copy.indices, copy.source, strict=True):
                if spans:
                    value = _hash(memory, page * slice_.shape.page_bytes, spans)
                    found.append(PageDigest(rank, target, copy.group, index, value))
    return found


def received_digests(memory: PoolMemory, rank: int, link: Introduce, copies: Iterable[PageCopy]) -> list[PageDigest]:
    """Hashes of what target rank `rank` got from each rank of the peer, over its own pages."""
    found = []
    mine = link.mine.ranks[rank]
    for copy in copies:
        for source, source_rank in enumerate(link.theirs.ranks):
            runs = page_runs(link.theirs, source_rank, link.mine, mine, copy.group)
            spans = list(zip(runs.dst.tolist(), runs.nbytes.tolist(), strict=True))
            for index, page in zip(copy.indices, copy.target, strict=True):
                if spans:
                    value = _hash(memory, page * mine.shape.page_bytes, spans)
                    found.append(PageDigest(source, rank, copy.group, index, value))
    return found


def _hash(memory: PoolMemory, base: int, spans: list[tuple[int, int]]) -> int:
    digest = xxhash.xxh64()
    for offset, nbytes in spans:
        digest.update(memory.read(base + offset, nbytes))
    return digest.intdigest()
