"""The address at which other hosts reach this one, when it listens on all of its addresses."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

import psutil

_DISCARD_PORT = 9
# Documentation networks (RFC 5737, RFC 3849): the route to them is the default route. Nothing is ever sent there.
_ANYWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


def reachable_host(listening: str, meeting: Iterable[tuple[str, int]]) -> str:
    """What peers are told to dial: `listening`, or for a wildcard (0.0.0.0, ::) the address of the interface that
    routes to the first of the `meeting` points (host, port), else of the default route, else loopback."""
    address = ipaddress.ip_address(listening.partition("%")[0])
    if not address.is_unspecified:
        return listening
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    targets = [(host, port) for host, port in meeting if not _is_wildcard(host)]
    for host, port in [*targets, (_ANYWHERE[family], _DISCARD_PORT)]:
        found = _source_address(host, port)
        if found:
            return found
    return "127.0.0.1" if address.version == 4 else "::1"


def interface_towards(host: str, port: int) -> str:
    """Name of the network interface that leads to that address, "" when there is none."""
    own = ipaddress.ip_address(_source_address(host, port) or host)
    for name, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            if one.family in _ANYWHERE and ipaddress.ip_address(one.address.partition("%")[0]) == own:
                return name
    return ""


def host_port(host: str, port: int) -> str:
    """`HOST:PORT`, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def url_of(host: str, port: int, *, secure: bool = False) -> str:
    return f"{'https' if secure else 'http'}://{host_port(host, port)}"


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _source_address(host: str, port: int) -> str:
    """The address that this host would send from, or nothing without a route. A UDP socket sends nothing on connect."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
    except OSError:
        return ""
    return ""
