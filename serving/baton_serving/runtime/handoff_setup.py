"""Puts a worker's handoff together: service, engines of all ranks, and look-ups at the bootstrap server."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import zmq

from baton_bootstrap.auth import read_token
from baton_bootstrap.client import BootstrapThread
from baton_bootstrap.errors import BootstrapError
from baton_bootstrap.tls import TlsFiles, tls_files
from baton_serving.config import ResolvedConfig, ServerConfig
from baton_serving.errors import ConfigError
from baton_serving.handoff.backends.base import BackendFactory
from baton_serving.handoff.backends.registry import BackendOptions, backend_factory
from baton_serving.handoff.control import CurveKeys
from baton_serving.handoff.layout import PROTOCOL_VERSION, PeerDescriptor, rank_slice
from baton_serving.handoff.ranks import RankCommand, RankReport
from baton_serving.handoff.rim import Limits, PeerAddress
from baton_serving.handoff.service import HandoffService
from baton_serving.runtime.channels import Addresses
from baton_serving.runtime.handoff_bridge import HandoffBridge
from baton_serving.runtime.handoff_ranks import FollowerTransfers, rank_transfer
from baton_serving.runtime.identity import Identity, engine_digest
from baton_serving.runtime.rank import Rank
from baton_serving.scheduling.scheduler import Scheduler

TOKEN_VARIABLE = "BATON_TOKEN_FILE"  # set by a deployment: the secret that a service's own parts share


def transfer_factory(config: ResolvedConfig) -> BackendFactory:
    """Makes this rank's transfer engines (ConfigError when the backend is not for separate processes)."""
    given = config.given.disaggregation
    if given.disaggregation_transfer_backend == "fake":
        raise ConfigError(
            "--disaggregation-transfer-backend fake moves pages within one process, for tests; use mooncake or nixl"
        )
    options = BackendOptions(
        host=config.given.http.host,
        protocol=config.transfer_protocol,
        devices=given.disaggregation_ib_device or "",
        cuda=config.device == "cuda",
    )
    return backend_factory(given.disaggregation_transfer_backend, options)


def bootstrap_token() -> str | None:
    """The secret for the bootstrap server, if the deployment has one (ConfigError when it cannot be read)."""
    path = os.environ.get(TOKEN_VARIABLE)
    try:
        return read_token(Path(path) if path else None)
    except BootstrapError as error:
        raise ConfigError(str(error)) from error


def tls_of(config: ServerConfig) -> TlsFiles | None:
    """The certificates of this worker, if it has any (ConfigError for half a pair)."""
    given = config.http
    try:
        return tls_files(given.ssl_certfile, given.ssl_keyfile, given.ssl_ca_certs)
    except BootstrapError as error:
        raise ConfigError(str(error)) from error


def curve_keys(path: str | None) -> CurveKeys | None:
    """The key pair that the workers of a service share (ConfigError when the file holds none)."""
    if path is None:
        return None
    try:
        secret = Path(path).read_text().strip()
        return CurveKeys(zmq.curve_public(secret.encode()).decode(), secret)
    except (OSError, ValueError, zmq.ZMQError) as error:
        raise ConfigError(
            f"--disaggregation-curve-key-file {path}: it holds no CURVE secret key of 40 characters ({error})"
        ) from error


def bootstrap_addresses(config: ResolvedConfig) -> list[str]:
    return [f"{host}:{port}" for host, port in config.bootstrap_addrs]


class Handoff:
    """A worker's handoff on rank 0. `bridge` goes into the scheduler loop; `close` ends all threads."""

    def __init__(
        self,
        config: ResolvedConfig,
        identity: Identity,
        rank: Rank,
        scheduler: Scheduler,
        context: zmq.Context[zmq.Socket[bytes]],
        addresses: Addresses,
    ) -> None:
        limits = Limits()
        factory = transfer_factory(config)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._bootstrap = BootstrapThread(
            bootstrap_addresses(config), token=bootstrap_token(), tls=tls_of(config.given)
        )
        self._curve = curve_keys(config.given.disaggregation.disaggregation_curve_key_file)
        self.service = HandoffService(
            _descriptor(config, identity, rank),
            self._command,
            self._resolve,
            lambda: os.eventfd_write(self._wake_fd, 1),
            bind=f"tcp://{config.given.http.host}:0",
            limits=limits,
            verify=config.given.disaggregation.disaggregation_verify,
            curve=self._curve,
        )
        report: Callable[[RankReport], None] = self.service.report
        self._followers = FollowerTransfers(context, addresses, report)
        self._local = rank_transfer(rank, factory, report, identity.incarnation, limits.write)
        self.service.start()
        mode = config.given.disaggregation.disaggregation_mode
        self.bridge = HandoffBridge(self.service, scheduler, mode, self._wake_fd)

    def close(self) -> None:
        self.service.close()
        self._local.close()
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
        public_key = "" if self._curve is None else self._curve.public
        return PeerAddress(worker.control, worker.incarnation, public_key) if worker.control else None


def _descriptor(config: ResolvedConfig, identity: Identity, rank: Rank) -> PeerDescriptor:
    layout = rank.loaded.kv_layout
    return PeerDescriptor(
        version=PROTOCOL_VERSION,
        worker=identity.id,
        incarnation=identity.incarnation,
        weights=rank.loaded.digest,
        engine=engine_digest(config),
        layout=layout,
        tp_size=config.tp_size,
        pp_size=1,
        backend=config.given.disaggregation.disaggregation_transfer_backend,
        epoch=0,
        ranks=tuple(rank_slice(layout, config.tp_size, tp_rank) for tp_rank in range(config.tp_size)),
    )
