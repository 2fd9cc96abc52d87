"""Taking the port."""

from __future__ import annotations

import socket

import pytest

from baton_serving.api.server import bind
from baton_serving.errors import ConfigError


def test_a_free_port_is_taken() -> None:
    with bind("127.0.0.1", 0) as listener:
        assert listener.getsockname()[1] > 0
        assert listener.type == socket.SOCK_STREAM


def test_a_port_in_use_says_what_to_do() -> None:
    with bind("127.0.0.1", 0) as listener, pytest.raises(ConfigError, match=r"--port \d+: .*choose another port"):
        bind("127.0.0.1", listener.getsockname()[1])


def test_a_host_that_is_none_says_so() -> None:
    with pytest.raises(ConfigError, match="--host 256"):
        bind("256.256.256.256", 0)
