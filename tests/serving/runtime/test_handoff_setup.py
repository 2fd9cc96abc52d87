"""Keys and certificates of a worker, read from what its flags name, and how its handoff ends."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import zmq
from support.local_worker import LocalWorker

from baton_serving.config import config_from_values
from baton_serving.errors import ConfigError
from baton_serving.handoff.control import ControlSockets, CurveKeys
from baton_serving.handoff.rim import PeerAddress
from baton_serving.runtime.bootstrap_access import tls_of
from baton_serving.runtime.channels import Addresses
from baton_serving.runtime.curve import curve_keys
from baton_serving.runtime.facts import resolve_here
from baton_serving.runtime.handoff_setup import Handoff
from baton_serving.runtime.identity import Identity
from baton_serving.runtime.rank_sockets import RankSockets

BATON_TINY = Path(__file__).parents[3] / "examples" / "models" / "baton-tiny"


def reached(server: CurveKeys, client: CurveKeys | None, dialled: CurveKeys | None = None) -> bool:
    """Whether a frame of the client, which takes the server's key for `dialled` (its own), arrives at the server."""
    got: list[bytes] = []
    ended: list[int] = []
    one = ControlSockets("tcp://127.0.0.1:0", lambda _, frame: got.append(frame), ended.append, server)
    two = ControlSockets("tcp://127.0.0.1:0", lambda _, frame: None, ended.append, client)
    two.dial(0, PeerAddress(one.endpoint, "", "" if client is None else (dialled or client).public))
    two.send(0, b"hello")
    for _ in range(100):
        one.poll(0.02)
        two.poll(0.0)
        if got or ended:
            break
    two.close()
    one.close()
    return got == [b"hello"]


def test_workers_with_the_same_key_reach_each_other_and_others_do_not(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(zmq.curve_keypair()[1] + b"\n")
    ours = curve_keys(str(path))
    assert ours is not None
    assert reached(ours, curve_keys(str(path)))
    path.write_bytes(zmq.curve_keypair()[1])
    other = curve_keys(str(path))
    assert not reached(ours, other)
    assert not reached(ours, other, dialled=ours)  # knowing whom to talk to is not enough
    assert not reached(ours, None)
    assert curve_keys(None) is None


def test_one_step_of_a_rotation_apart_workers_reach_each_other_and_later_no_more(tmp_path: Path) -> None:
    path, secrets = tmp_path / "key", [zmq.curve_keypair()[1].decode() for _ in range(4)]
    found = []
    for first, following, former in ((0, 1, None), (1, 2, 0), (2, 3, 1)):
        path.write_text("\n".join(secrets[one] for one in (first, following, former) if one is not None))
        found.append(curve_keys(str(path)))
    early, between, late = found
    assert early is not None
    assert between is not None
    assert late is not None
    for server, client in ((early, between), (between, early), (between, late), (late, between)):
        assert client.known(server.public)
        assert reached(server, client, dialled=server)
    assert not late.known(early.public)
    assert not reached(late, early, dialled=late)


@pytest.mark.parametrize("text", ["", "short", "x" * 39 + "\N{SNOWMAN}", None])
def test_a_file_without_a_key(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "key").write_text(text)
    with pytest.raises(ConfigError, match="--disaggregation-curve-key-file"):
        curve_keys(str(tmp_path / "key"))


def test_certificate_and_key_belong_together() -> None:
    with pytest.raises(ConfigError, match="belong together"):
        tls_of(config_from_values({"model_path": "m", "ssl_certfile": "c"}))
    assert tls_of(config_from_values({"model_path": "m"})) is None


def answers(endpoint: str) -> bool:
    address = urlsplit(endpoint)
    try:
        socket.create_connection((address.hostname, address.port or 0), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_the_control_connection_ends_after_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end is a peer's proof that nothing is written or read any more."""
    worker = LocalWorker(BATON_TINY, max_total_tokens=2000)
    config = resolve_here(
        config_from_values(
            {
                "model_path": str(BATON_TINY),
                "device": "cpu",
                "disaggregation_mode": "decode",
                "disaggregation_transfer_backend": "mooncake",
                "disaggregation_bootstrap_addr": "127.0.0.1:9",
            }
        )
    )
    with zmq.Context() as context:
        addresses = Addresses.create(1)
        identity = Identity.fresh("127.0.0.1", 1)
        handoff = Handoff(config, identity, worker.rank, worker.scheduler, RankSockets(context, addresses))
        endpoint = handoff.service.endpoint
        close_engines = handoff._local.close
        seen: list[bool] = []

        def closing() -> None:
            close_engines()
            seen.append(answers(endpoint))

        monkeypatch.setattr(handoff._local, "close", closing)
        assert answers(endpoint)
        handoff.close()
        addresses.remove()
    assert seen == [True]
    assert not answers(endpoint)
