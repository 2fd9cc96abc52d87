"""What `baton serve` is told of a role, whoever starts it: the operator in a pod, `baton up` on one machine."""

from __future__ import annotations

from typing import Final

from baton_operator.api.v1alpha1 import Transfer, WorkerRole

_PROTOCOLS: Final = {"tcp": "tcp", "rdma": "rdma", "nvlink": "nvlink_intra"}


def role_flags(role: WorkerRole, mode: str, transfer: Transfer, bootstrap: str) -> list[str]:
    """Flags for the leg `mode` (prefill, decode, or null: whole), registered with the servers `bootstrap`."""
    parallel = role.parallelism
    flags = ["--tp-size", str(parallel.tensor)]
    flags += ["--disaggregation-mode", mode, "--disaggregation-bootstrap-addr", bootstrap]
    if mode != "null":
        flags += ["--disaggregation-transfer-backend", transfer.backend]
        flags += ["--disaggregation-transfer-protocol", _PROTOCOLS[transfer.protocol]]
        if transfer.devices:
            flags += ["--disaggregation-ib-device", ",".join(transfer.devices)]
    for flag, size in (("--pp-size", parallel.pipeline), ("--dp-size", parallel.data), ("--ep-size", parallel.expert)):
        if size > 1:
            flags += [flag, str(size)]
    return flags
