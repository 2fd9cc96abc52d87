"""A process group with whoever trains the weights: rank 0 of it broadcasts tensors, a worker's ranks receive them.

It is made beside the worker's own group, as trainers make it: a TCP store, prefixed by the group's name.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d
from torch.distributed.rendezvous import rendezvous

from baton_serving.errors import ConfigError
from baton_serving.model.checkpoint import MemoryCheckpoint
from baton_serving.model.options import DTYPES

BACKENDS = ("gloo", "nccl")


class WeightGroup:
    """Joined on construction, which waits for all members, at most `timeout` seconds (ConfigError).

    With "nccl" tensors are received on `device`, with "gloo" in host memory.
    """

    def __init__(
        self, name: str, address: str, rank: int, world_size: int, backend: str, device: torch.device, timeout: float
    ) -> None:
        if backend not in BACKENDS:
            raise ConfigError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
        if backend == "nccl" and device.type != "cuda":
            raise ConfigError("backend nccl needs a worker on CUDA; use gloo")
        self.name = name
        self._device = device if backend == "nccl" else torch.device("cpu")
        limit = datetime.timedelta(seconds=timeout)
        try:
            store, rank, world_size = next(rendezvous(f"tcp://{address}", rank, world_size, timeout=limit))
            store.set_timeout(limit)
            self.group, _ = c10d._new_process_group_helper(  # as trainers do, for want of a public call
                world_size,
                rank,
                [],
                backend,
                c10d.PrefixStore(name, store),
                group_name=c10d.GroupName(name),
                timeout=limit,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise ConfigError(f"group {name!r} at {address} was not joined: {str(error).splitlines()[0]}") from error
        c10d._world.pg_group_ranks[self.group] = {member: member for member in range(world_size)}

    def receive(self, tensors: Sequence[tuple[str, str, Sequence[int]]]) -> MemoryCheckpoint:
        """Tensors `(name, dtype, shape)`, broadcast by rank 0 in this order (ConfigError when they don't come)."""
        received = {}
        for name, dtype, shape in tensors:
            kind = DTYPES.get(dtype.removeprefix("torch."))
            if kind is None:
                raise ConfigError(f"tensor {name!r} has dtype {dtype!r}; weights must be one of {', '.join(DTYPES)}")
            buffer = torch.empty(tuple(shape), dtype=kind, device=self._device)
            try:
                dist.broadcast(buffer, src=0, group=self.group)
            except RuntimeError as error:
                raise ConfigError(f"tensor {name!r} did not come: {str(error).splitlines()[0]}") from error
            received[name] = buffer.cpu()
        return MemoryCheckpoint(received, self.name)

    def close(self) -> None:
        dist.destroy_process_group(self.group)
