"""Memory that the ranks of one host map into each other's processes, for collectives of our own."""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist

from baton_kernels.reduce_add_rms_norm import ReduceAddRmsNorm
from baton_kernels.registry import HALF

log = logging.getLogger(__name__)

_MAX_ROWS = 512  # from about here on a message costs more than NCCL's start


def reduce_add_rms_norm(
    group: dist.ProcessGroup | None, device: torch.device, dtype: torch.dtype, dim: int
) -> ReduceAddRmsNorm | None:
    """The fused op over GPUs that reach each other's memory; None where NCCL or gloo has to do.

    All ranks of `group` call this together.
    """
    if group is None or device.type != "cuda" or dtype not in HALF or dim % 2:
        return None
    if torch.cuda.get_device_capability(device)[0] < 8:
        return None
    import torch.distributed._symmetric_memory as symm_mem

    from baton_kernels.triton_reduce_norm import TritonReduceAddRmsNorm

    words = TritonReduceAddRmsNorm.inbox_words(group.size(), _MAX_ROWS, dim)
    addresses: list[int] = []
    try:
        inbox = symm_mem.empty(words, dtype=torch.int64, device=device)
        handle = symm_mem.rendezvous(inbox, group)
        addresses = [int(address) for address in handle.buffer_ptrs]
        inbox.zero_()
    except RuntimeError as error:
        log.warning("the GPUs do not map each other's memory, so NCCL sums between ranks: %s", error)
    everywhere = torch.tensor(bool(addresses), device=device, dtype=torch.int64)
    dist.all_reduce(everywhere, op=dist.ReduceOp.MIN, group=group)  # also: every inbox is empty from here on
    if not int(everywhere):
        return None
    inboxes = torch.tensor(addresses, dtype=torch.int64, device=device)
    return TritonReduceAddRmsNorm(inboxes, group.rank(), _MAX_ROWS, keep=(inbox, handle))
