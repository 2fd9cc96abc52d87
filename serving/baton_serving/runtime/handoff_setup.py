"""Puts a worker's handoff together: service, engines of all ranks, and look-ups at the bootstrap server."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from baton_bootstrap.client import BootstrapThread
from baton_bootstrap.errors import BootstrapError
from baton_serving.config import ResolvedConfig
from baton_serving.handoff.backends.base import BackendFactory
from baton_serving.handoff.backends.registry import BackendOptions, backend_factory
from baton_serving.handoff.layout import PROTOCOL_VERSION, PeerDescriptor, rank_slice
from baton_serving.handoff.ranks import RankCommand, RankReport
from baton_serving.handoff.rim import Limits, PeerAddress
from baton_serving.handoff.service import HandoffService
from baton_serving.runtime.bootstrap_access import bootstrap_addresses, bootstrap_token, tls_of
from baton_serving.runtime.control_calls import ControlHandler
from baton_serving.runtime.curve import curve_keys
from baton_serving.runtime.handoff_bridge import HandoffBridge
from baton_serving.runtime.handoff_ranks import FollowerTransfers, rank_transfer
from baton_serving.runtime.identity import Identity
from baton_serving.runtime.rank import Rank
from baton_serving.runtime.rank_sockets import RankSockets
from baton_serving.runtime.reachable import host_port
from baton_serving.scheduling.scheduler import Scheduler

log = logging.getLogger(__name__)


def transfer_factory(config: ResolvedConfig, host: str) -> BackendFactory:
    """Makes this rank's transfer engines, which peers reach at `host`."""
    given = config.given.disaggregation
    options = BackendOptions(
        host=host,
        protocol=config.transfer_protocol,
        devices=given.disaggregation_ib_device or "",
        cuda=config.device == "cuda",
    )
    return backend_factory(given.disaggregation_transfer_backend, options)


class Handoff:
    """A worker's handoff on rank 0. `bridge` goes into the scheduler loop; `close` ends all threads."""

    def __init__(
        self,
        config: ResolvedConfig,
        identity: Identity,
        rank: Rank,
        scheduler: Scheduler,
        sockets: RankSockets,
    ) -> None:
        limits, given = Limits(), config.given.disaggregation
        factory = transfer_factory(config, identity.host)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._bootstrap = BootstrapThread(
            bootstrap_addresses(config), token=bootstrap_token(), tls=tls_of(config.given)
        )
        self._key_file = given.disaggregation_curve_key_file
        self._curve = curve_keys(self._key_file)
        self.service = HandoffService(
            _descriptor(config, identity, rank),
            self._command,
            self._resolve,
            lambda: os.eventfd_write(self._wake_fd, 1),
            bind=f"tcp://{host_port(identity.host, 0)}",
            limits=limits,
            verify=given.disaggregation_verify,
            receiver_tp=given.disaggregation_decode_tp,
            curve=self._curve,
        )
        report: Callable[[RankReport], None] = self.service.report
        self._followers = FollowerTransfers(sockets, report)
        self._local = rank_transfer(rank, factory, report, identity.incarnation, limits.write)
        self.service.start()
        mode = given.disaggregation_mode
        name = identity.id
        self.bridge = HandoffBridge(self.service, scheduler, mode, self._wake_fd, self._incarnation, name)

    @property
    def controls(self) -> dict[str, ControlHandler]:
        return {**self.bridge.controls, "keys_renew": self.renew_keys}

    @property
    def key(self) -> str:
        """Public CURVE key of `service.endpoint`, "" without encryption."""
        return "" if self._curve is None else self._curve.public

    def renew_keys(self) -> dict[str, str]:
        """Control call: read the key file again. The result holds the `control` endpoint and its `control_key`."""
        found = curve_keys(self._key_file)
        if found is not None and found != self._curve:
            self.service.change_keys(found)
            self._curve = found
            log.info("keys of the control sockets taken over from %s", self._key_file)
        return {"control": self.service.endpoint, "control_key": self.key}

    def close(self) -> None:
        # Engines first: the end of the control connections tells peers that nothing is written any more.
        self._local.close()
        self.service.close()
        self._followers.close()
        self._bootstrap.close()
        os.close(self._wake_fd)

    def _command(self, rank: int, command: RankCommand) -> None:
        if rank == 0:
            self._local.submit(command)
        else:
            self._followers.command(rank, command)

    def _resolve(self, peer_key: str) -> PeerAddress | None:
        """The registered worker behind a key of a request: nothing but the registry decides what is dialled."""
        try:
            worker = self._bootstrap.find(peer_key).worker
        except BootstrapError:
            return None
        if self._curve is not None and not self._curve.known(worker.control_key):
            log.warning("the control socket of %s has a key that is none of the service's", worker.id)
            return None
        public_key = "" if self._curve is None else worker.control_key
        return PeerAddress(worker.control, worker.incarnation, public_key) if worker.control else None

    def _incarnation(self, worker: str) -> str:
        """Which start of the worker of that name the registry knows as alive; empty when there is none."""
        try:
            return self._bootstrap.view.find(worker).worker.incarnation
        except BootstrapError:
            return ""


def _descriptor(config: ResolvedConfig, identity: Identity, rank: Rank) -> PeerDescriptor:
    layout = rank.loaded.kv_layout
    return PeerDescriptor(
        version=PROTOCOL_VERSION,
        worker=identity.id,
        incarnation=identity.incarnation,
        weights=rank.loaded.digest,
        engine=rank.engine_digest,
        layout=layout,
        tp_size=config.tp_size,
        pp_size=1,
        backend=config.given.disaggregation.disaggregation_transfer_backend,
        epoch=0,
        ranks=tuple(rank_slice(layout, config.tp_size, tp_rank) for tp_rank in range(config.tp_size)),
    )
