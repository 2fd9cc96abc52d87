"""How a step of extend rows is cut into programs, from the rows' lengths alone and on their device.

Queries of one row are cut into blocks, keys into stretches at fixed positions. Either each block is one program that
goes through its stretches in order, or, where that gives too few programs, each (block, stretch) is one and a second
kernel joins them in the same order. Both ways do the same arithmetic, so how a step is cut changes no bit of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ExtendItems:
    """`blocks` int32 `[blocks, 4]`: row, first query among the step's tokens, number of queries, position of the first.
    `items` int32 `[items, 4]`: block, first stretch, end, whether the block has no other item. `ends` int32
    `[blocks + 1]`: items `ends[b]` to `ends[b + 1]` are block b's. Blocks and items beyond the step's are empty."""

    blocks: torch.Tensor
    items: torch.Tensor
    ends: torch.Tensor


def plan_items(
    q_lens: torch.Tensor, kv_lens: torch.Tensor, tokens: int, block: int, stretch: int, window: int, splits: int
) -> ExtendItems:
    """`q_lens` and `kv_lens` int `[rows]` on the device; `tokens` is at least the sum of `q_lens`, known on the host.

    Blocks hold `block` queries, stretches `stretch` keys; `window` is 0 for none. Blocks are split while that gives at
    most `splits` items.
    """
    rows, device = q_lens.shape[0], q_lens.device
    q_lens, kv_lens = q_lens.long(), kv_lens.long()
    most = tokens // block + rows
    counts = (q_lens + block - 1) // block
    upto = counts.cumsum(0)
    number = torch.arange(most, device=device)
    row = torch.searchsorted(upto, number, right=True).clamp_(max=rows - 1)
    inside = number < upto[-1]
    before = (number - (upto - counts)[row]) * block  # queries of the row before this block
    size = torch.where(inside, (q_lens[row] - before).clamp(0, block), 0)
    position = (kv_lens - q_lens)[row] + before
    blocks = torch.stack((row, (q_lens.cumsum(0) - q_lens)[row] + before, size, position), dim=1)
    blocks = torch.where(inside.unsqueeze(1), blocks, 0)
    first = torch.zeros_like(position) if window == 0 else (position - window + 1).clamp_(min=0) // stretch
    stretches = torch.where(size > 0, (position + size - 1) // stretch + 1 - first, 0)
    split = stretches.sum() <= splits
    wanted = torch.where(split, stretches, (stretches > 0).long())
    item_ends = wanted.cumsum(0)
    item = torch.arange(max(most, splits), device=device)
    of = torch.searchsorted(item_ends, item, right=True).clamp_(max=most - 1)
    begin = first[of] + item - (item_ends - wanted)[of]
    end = torch.where(split, begin + 1, first[of] + stretches[of])
    items = torch.stack((of, begin, end, (wanted[of] == 1).long()), dim=1)
    items = torch.where((item < item_ends[-1]).unsqueeze(1), items, 0)
    ends = torch.cat((torch.zeros_like(item_ends[:1]), item_ends))
    return ExtendItems(blocks.int(), items.int(), ends.int())
