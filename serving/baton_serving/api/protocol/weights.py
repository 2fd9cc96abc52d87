"""Bodies of the calls that change weights, named as SGLang names them; `mode` and `timeout` are ours."""

from __future__ import annotations

from typing import Literal

import msgspec

DRAIN_SECONDS = 600.0  # for running requests to end


class UpdateBody(msgspec.Struct, kw_only=True):
    """`mode` says what becomes of running requests: the change waits for their end, ends them, or has them go on with
    the new weights, their KV computed again. `timeout` in seconds bounds the wait.
    """

    weight_version: str | None = None
    abort_all_requests: bool = False
    mode: Literal["wait", "abort", "retract"] = "wait"
    timeout: float = DRAIN_SECONDS


class FromDiskBody(UpdateBody, kw_only=True):
    model_path: str = ""
    load_format: str | None = None
    revision: str | None = None


class FromDistributedBody(UpdateBody, kw_only=True):
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    group_name: str = "weight_update_group"


class InitGroupBody(msgspec.Struct, kw_only=True):
    """`rank_offset` is this worker's first rank in a group of `world_size`; rank 0, the trainer, listens at the master
    address. `backend` is "gloo" or "nccl".
    """

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    group_name: str = "weight_update_group"
    backend: str = "nccl"
    timeout: float = 120.0


class LeaveGroupBody(msgspec.Struct):
    group_name: str = "weight_update_group"


class PauseBody(msgspec.Struct):
    mode: Literal["abort", "retract", "in_place"] = "abort"


class MemoryBody(msgspec.Struct):
    tags: list[str] | None = None
