"""Who a worker is: the same for every process of one start, and new on the next."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from importlib.metadata import version

import msgspec

from baton_serving import __version__
from baton_serving.config import ResolvedConfig

ID_VARIABLE = "BATON_WORKER_ID"  # set by a deployment: the pod's name
GROUP_VARIABLE = "BATON_WORKER_GROUP"  # set by a deployment: the name of what made the pod


class Identity(msgspec.Struct, frozen=True):
    """`incarnation` is new on every start; `epoch`, the start in unix nanoseconds, orders the starts of one `id`.
    `host` is the address at which other workers reach this one."""

    id: str
    incarnation: str
    epoch: int
    host: str

    @classmethod
    def fresh(cls, host: str, port: int) -> Identity:
        """An identity for a start now: named by the deployment, else by where it can be reached."""
        return cls(os.environ.get(ID_VARIABLE) or f"{host}:{port}", uuid.uuid4().hex, time.time_ns(), host)


def engine_digest(config: ResolvedConfig, attention: tuple[str, str]) -> str:
    """What computes, in hex: two workers of equal weights and equal engine digest compute the same KV.

    `attention` names the back ends in use for prefill and decode. Covers code, libraries, dtypes and attention back
    ends; not sizes or sharding, in which two workers may differ.
    """
    parts = (
        __version__,
        version("torch").partition("+")[0],
        version("transformers"),
        config.device,
        config.dtype,
        config.kv_dtype,
        *attention,
        config.given.model.model_impl,
        config.given.dtype.quantization or "",
        "deterministic" if config.given.optimization.enable_deterministic_inference else "",
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
