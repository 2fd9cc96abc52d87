"""Which address a worker that listens everywhere gives to others."""

from __future__ import annotations

import socket

import pytest

from baton_serving.runtime import reachable
from baton_serving.runtime.reachable import reachable_host, url_of


def test_a_definite_address_is_given_as_it_is() -> None:
    assert reachable_host("10.1.2.3", [("127.0.0.1", 8998)]) == "10.1.2.3"
    assert reachable_host("fd00::5", []) == "fd00::5"


def test_a_wildcard_becomes_the_address_on_the_way_to_the_bootstrap_server() -> None:
    assert reachable_host("0.0.0.0", [("127.0.0.1", 8998)]) == "127.0.0.1"
    assert reachable_host("0.0.0.0", [("0.0.0.0", 8998), ("127.0.0.1", 1)]) == "127.0.0.1"


def test_without_a_bootstrap_server_the_default_route_decides() -> None:
    found = reachable_host("0.0.0.0", [])
    with socket.socket() as listener:
        listener.bind((found, 0))  # an address of this host
    assert found != "0.0.0.0"


def test_without_any_route_only_this_host_can_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reachable, "_source_address", lambda host, port: "")
    assert reachable_host("0.0.0.0", [("bootstrap.example", 1)]) == "127.0.0.1"
    assert reachable_host("::", []) == "::1"


def test_urls_hold_ipv6_in_brackets() -> None:
    assert url_of("::1", 80) == "http://[::1]:80"
    assert url_of("10.0.0.1", 80) == "http://10.0.0.1:80"
