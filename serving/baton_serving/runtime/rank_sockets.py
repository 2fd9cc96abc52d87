"""Rank 0's ends of its conversations with the other ranks."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

import msgspec
import zmq

from baton_serving.errors import ConfigError, InternalError
from baton_serving.handoff.ranks import RankCommand, RankReport
from baton_serving.runtime.channels import OPEN, Addresses, Lock, Pull, Push
from baton_serving.runtime.commands import AnyCommand, Report
from baton_serving.runtime.reachable import host_port


class RankSockets:
    """All bound; `addresses` says where, ports that the system chose included. With one rank there are none.

    `listening` is where the process group of ranks on several nodes meets, for whoever makes it.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], addresses: Addresses, nccl_port: int = 0) -> None:
        """ConfigError when `nccl_port`, for the process group of ranks on several nodes, cannot be had."""
        at = urlsplit(addresses.rendezvous)
        self.listening = None if at.hostname is None else _listen(at.hostname, nccl_port)
        lock = OPEN if self.listening is None else Lock(*(key.decode() for key in zmq.curve_keypair()))
        self.commands: list[Push[AnyCommand]] = [Push(context, to, lock, bind=True) for to in addresses.commands]
        self.transfers: list[Push[RankCommand]] = [Push(context, to, lock, bind=True) for to in addresses.transfers]
        self.reports: Pull[Report] | None = None
        self.transfer_reports: Pull[RankReport] | None = None
        self.addresses = addresses
        if self.commands:
            self.reports = Pull(context, addresses.reports, Report, lock)
            self.transfer_reports = Pull(context, addresses.transfer_reports, RankReport, lock)
            self.addresses = msgspec.structs.replace(
                addresses,
                commands=tuple(push.address for push in self.commands),
                reports=self.reports.address,
                transfers=tuple(push.address for push in self.transfers),
                transfer_reports=self.transfer_reports.address,
                key=lock.public,
            )
        if self.listening is not None:
            meeting = f"tcp://{host_port(at.hostname or '', self.listening.getsockname()[1])}"
            self.addresses = msgspec.structs.replace(self.addresses, rendezvous=meeting)

    def meet(self, timeout: float, *, transfers: bool) -> None:
        """Wait for the other ranks, whom nothing reaches before they came (InternalError after `timeout` seconds)."""
        pushes: list[Push[Any]] = [*self.commands, *(self.transfers if transfers else [])]
        for push in pushes:
            if not push.has_reader(int(timeout * 1000)):
                raise InternalError("not all ranks came in time")

    def close(self) -> None:
        """What is still open."""
        pushes: list[Push[Any]] = [*self.commands, *self.transfers]
        for push in pushes:
            push.close()
        for reports in (self.reports, self.transfer_reports):
            if reports is not None:
                reports.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(
            f"--nccl-port {port}: {host} cannot listen there ({error.strerror}); choose another"
        ) from error
