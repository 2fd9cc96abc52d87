"""Transfer backends by name. Libraries are imported when the first engine opens."""

from __future__ import annotations

import msgspec

from baton_serving.handoff.backends.base import BackendFactory, TransferBackend
from baton_serving.handoff.backends.fake import FakeFabric

BACKENDS = ("mooncake", "nixl", "fake")


class BackendOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`host` is the address that peers reach this worker at. `protocol` is auto or what the backend knows: tcp, rdma,
    nvlink_intra (Mooncake); tcp, cma, rdma, cuda_ipc, also called nvlink_intra (NIXL). `devices` are adapters, found
    out when empty. `cuda` says that pools are device memory; `write_timeout` is in seconds."""

    host: str = "127.0.0.1"
    protocol: str = "auto"
    devices: str = ""
    cuda: bool = False
    write_timeout: float = 10.0


def backend_factory(name: str, options: BackendOptions, fabric: FakeFabric | None = None) -> BackendFactory:
    """A factory for this process's engines; `fabric` is what fake engines of one process share.

    Raises ValueError for an unknown name; a library that is missing shows when the first engine opens (BackendError).
    """
    if name == "fake":
        return (fabric or FakeFabric()).backend
    if name == "mooncake":
        from baton_serving.handoff.backends.mooncake import MooncakeBackend, RetiredPorts

        retired = RetiredPorts()

        def mooncake(engine: str) -> TransferBackend:
            return MooncakeBackend(options.host, retired, options.protocol, options.devices, options.write_timeout)

        return mooncake
    if name == "nixl":
        from baton_serving.handoff.backends.nixl import NixlBackend

        def nixl(engine: str) -> TransferBackend:
            protocol = "cuda_ipc" if options.protocol == "nvlink_intra" else options.protocol
            return NixlBackend(engine, options.host, protocol, options.devices, options.cuda)

        return nixl
    raise ValueError(f"unknown transfer backend {name!r}: choose one of {', '.join(BACKENDS)}")
