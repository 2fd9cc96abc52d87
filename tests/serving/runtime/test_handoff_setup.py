"""How a worker's handoff ends."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import zmq
from support.local_worker import LocalWorker

from baton_serving.config import config_from_values
from baton_serving.runtime.channels import Addresses
from baton_serving.runtime.facts import resolve_here
from baton_serving.runtime.handoff_setup import Handoff
from baton_serving.runtime.identity import Identity

BATON_TINY = Path(__file__).parents[3] / "examples" / "models" / "baton-tiny"


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
        handoff = Handoff(config, identity, worker.rank, worker.scheduler, context, addresses)
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
