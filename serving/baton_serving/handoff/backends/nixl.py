"""NIXL over UCX as a backend.

The bound classes are used directly, because the Python layer above them writes a progress delay of 0 into its agent,
which burns a core while idle. UCX reads its environment when the library loads, so it is set once, before the import.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import struct
from collections.abc import Callable
from functools import partial
from types import ModuleType

import numpy as np
import numpy.typing as npt

from baton_serving.handoff.backends.base import BackendError, MemoryRegion, Outcome, Transport
from baton_serving.handoff.backends.devices import rdma_devices
from baton_serving.handoff.plan import Runs

logger = logging.getLogger(__name__)

_PACKAGES = ("nixl_cu13", "nixl_cu12")
_PROGRESS_DELAY_US = 1000
_DEVICE = "<i"  # an endpoint is the peer's number of its pool's device, then NIXL's metadata
_FAST_BYTES = 1 << 28
_FAST_POSTS = 8  # some milliseconds' worth, so that the link never waits for somebody to see what ended
_TRANSPORTS = {"tcp": "tcp", "cma": "tcp,cma", "rdma": "rc,ud,tcp", "cuda_ipc": "tcp,cuda_ipc"}
# Of UCX's transports, those through which a peer writes by itself: it needs no engine on our side to do so.
_PEER_WRITES_ALONE = {"all", "cma", "cuda_ipc", "knem", "posix", "shm", "sm", "sysv", "xpmem"}


def configure_environment(host: str, protocol: str, devices: str, cuda: bool) -> None:
    """Set what UCX reads when it loads. Values that the deployment set are kept."""
    os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")
    os.environ.setdefault("UCX_LOG_LEVEL", "ERROR")
    if not rdma_devices():
        os.environ.setdefault("UCX_MODULES", "^ib")  # its libnl crashes the process at exit
    wanted = protocol if protocol != "auto" else ("rdma" if rdma_devices() else "tcp")
    transports = _TRANSPORTS.get(wanted, wanted) + (",cuda_copy" if cuda else "")
    os.environ.setdefault("UCX_TLS", transports)
    if devices:
        os.environ.setdefault("UCX_NET_DEVICES", devices)
    elif host.startswith("127.") and wanted in ("tcp", "cma"):
        os.environ.setdefault("UCX_NET_DEVICES", "lo")


class NixlBackend:
    """See `TransferBackend`. `protocol` is auto, tcp, cma, rdma, cuda_ipc or a UCX_TLS list."""

    max_blocks = 4096
    max_bytes = 1 << 24
    max_posts = 4  # the link has work until somebody sees that one ended

    def __init__(self, name: str, host: str, protocol: str = "auto", devices: str = "", cuda: bool = False) -> None:
        configure_environment(host, protocol, devices, cuda)
        self._nixl = nixl = _bindings()
        self._errors: tuple[type[Exception], ...] = tuple(
            kind for kind in vars(nixl).values() if isinstance(kind, type) and issubclass(kind, Exception)
        )
        self._asked = protocol
        self._used = _protocol_in_use()
        self.fenced_by_close = _fenced_by_close(os.environ.get("UCX_TLS", "all"))
        if self._used != "tcp":
            self.max_bytes = _FAST_BYTES
            self.max_posts = _FAST_POSTS
        self._memory = nixl.VRAM_SEG if cuda else nixl.DRAM_SEG
        self._device = 0
        self._regions: object | None = None
        self._peers: dict[bytes, str] = {}
        self._devices: dict[str, int] = {}
        self._tickets: dict[int, Outcome] = {}
        config = nixl.nixlAgentConfig()
        config.useProgThread = True
        config.useListenThread = False
        config.syncMode = nixl.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
        config.pthrDelay = _PROGRESS_DELAY_US
        try:
            self._agent = nixl.nixlAgent(name, config)
            self._ucx = self._agent.createBackend("UCX", {})
        except self._errors as error:
            raise BackendError(f"nixl cannot start an agent: {error}") from error

    def register(self, region: MemoryRegion) -> None:
        self._device = region.device_id
        regions = self._nixl.nixlRegDList(self._memory, [(region.address, region.nbytes, region.device_id, b"")])
        try:
            self._agent.registerMem(regions, [self._ucx])
        except self._errors as error:
            raise BackendError(f"nixl cannot register {region.nbytes} bytes: {error}") from error
        self._regions = regions

    def endpoint(self) -> bytes:
        return struct.pack(_DEVICE, self._device) + bytes(self._agent.getLocalMD())

    def transport(self) -> Transport:
        return Transport(asked=self._asked, used=self._used)

    def connect(self, endpoint: bytes, address: int) -> str:
        if endpoint not in self._peers:
            size = struct.calcsize(_DEVICE)
            if len(endpoint) < size:
                raise BackendError(f"an endpoint of {len(endpoint)} bytes is none of nixl's")
            (device,) = struct.unpack(_DEVICE, endpoint[:size])
            try:
                name = self._agent.loadRemoteMD(endpoint[size:])
            except self._errors as error:
                raise BackendError(f"nixl does not take the peer's metadata: {error}") from error
            peer = self._peers[endpoint] = name.decode() if isinstance(name, bytes) else str(name)
            self._devices[peer] = device
        return self._peers[endpoint]

    def connected(self, peer: str) -> bool:
        """UCX connects in the background of the first write."""
        return True

    def disconnect(self, peer: str) -> None:
        for endpoint in [endpoint for endpoint, name in self._peers.items() if name == peer]:
            del self._peers[endpoint]
            with contextlib.suppress(*self._errors):  # it may have noticed the end of the peer by itself
                self._agent.invalidateRemoteMD(peer)

    def post(self, peer: str, runs: Runs) -> int:
        """A request that NIXL refuses to create or to post has sent nothing."""
        try:
            request = self._agent.createXferReq(
                self._nixl.NIXL_WRITE,
                self._descriptors(runs.src, runs.nbytes, self._device),
                self._descriptors(runs.dst, runs.nbytes, self._devices[peer]),
                peer,
                b"",
                [self._ucx],
            )
        except self._errors as error:
            raise BackendError(f"nixl cannot prepare a write to {peer}: {error}") from error
        outcome = self._status(partial(self._agent.postXferReq, request, b""))
        self._tickets[request] = outcome
        return int(request)

    def poll(self, ticket: int) -> Outcome:
        outcome = self._tickets[ticket]
        if outcome is Outcome.PENDING:
            outcome = self._status(partial(self._agent.getXferStatus, ticket))
        if outcome is not Outcome.PENDING:
            del self._tickets[ticket]
            with contextlib.suppress(*self._errors):
                self._agent.releaseXferReq(ticket)
        return outcome

    def _status(self, call: Callable[[], object]) -> Outcome:
        """Errors come as exceptions. A lost connection ends the write; after any other error nobody can say whether
        our memory is still read, so the write stays pending until its deadline makes it a hung one."""
        try:
            status = call()
        except self._nixl.nixlRemoteDisconnectError:
            return Outcome.BROKEN
        except self._errors as error:
            logger.error("a nixl write failed, and may still be under way: %s", error)
            return Outcome.PENDING
        return Outcome.DONE if status == self._nixl.NIXL_SUCCESS else Outcome.PENDING

    def close(self) -> None:
        """Requests under way are dropped, never released first: releasing one says nothing about its bytes."""
        self._tickets.clear()
        self._peers.clear()
        if self._regions is not None:
            with contextlib.suppress(*self._errors):
                self._agent.deregisterMem(self._regions, [self._ucx])
        del self._agent

    def _descriptors(self, addresses: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], device: int) -> object:
        table = np.empty((len(addresses), 3), dtype=np.uint64)
        table[:, 0], table[:, 1], table[:, 2] = addresses, sizes, device
        return self._nixl.nixlXferDList(self._memory, table)


def _bindings() -> ModuleType:
    """The bound classes, from whichever build is installed. The package `nixl` only picks one of the others."""
    for package in _PACKAGES:
        try:
            return importlib.import_module(f"{package}._bindings")
        except ModuleNotFoundError as error:
            if error.name != package:
                raise BackendError(f"{package} does not import: {error}") from error
        except ImportError as error:
            raise BackendError(f"{package} does not import: {error}") from error
    raise BackendError(f"NIXL is not installed: install one of {', '.join(_PACKAGES)}")


def _fenced_by_close(transports: str) -> bool:
    """Whether every transport that UCX may use needs our engine for a write to land (unknown of an exclusion list)."""
    return "^" not in transports and not _PEER_WRITES_ALONE & set(transports.split(","))


def _protocol_in_use() -> str:
    """The fastest of what UCX may choose from: the library does not tell which one it took."""
    allowed = os.environ.get("UCX_TLS", "all").split(",")
    if "cuda_ipc" in allowed:
        return "cuda_ipc"
    if "cma" in allowed:
        return "cma"
    if rdma_devices() and not {"rc", "ud", "dc", "ib", "all", "rc_mlx5", "rc_verbs"}.isdisjoint(allowed):
        return "rdma"
    return "tcp" if "tcp" in allowed else ",".join(allowed)
