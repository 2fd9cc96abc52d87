"""The processes that tie the nodes of a worker together, without ranks: who is let in, and how either side ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from support.baton_processes import free_port

from baton_serving.config import ResolvedConfig, ServerConfig, config_from_values
from baton_serving.errors import ConfigError
from baton_serving.runtime.channels import Addresses
from baton_serving.runtime.curve import node_keys
from baton_serving.runtime.gathering import own_address
from baton_serving.runtime.identity import Identity
from baton_serving.runtime.node_messages import Welcome, shared_flags
from baton_serving.runtime.process import Child, Told, stop_all, wait_ready

GATHER = "baton_serving.runtime.gathering:gather_main"
JOIN = "baton_serving.runtime.joining:join_main"
DECIDED = ResolvedConfig(
    given=ServerConfig(),
    device="cpu",
    dtype="float32",
    kv_dtype="float32",
    context_length=64,
    page_size=16,
    max_total_tokens=64,
    max_running_requests=1,
    chunked_prefill_size=None,
    prefill_attention_backend="torch_native",
    decode_attention_backend="torch_native",
    cuda_graph_batch_sizes=(1, 2),
    tokenizer_path="t",
    served_model_name="s",
    random_seed=7,
    dist_timeout=300,
    log_level_http="warning",
    model_overrides={"a": {"b": 1}},
    preferred_sampling_params={},
    transfer_protocol="tcp",
    bootstrap_addrs=(("h", 1),),
)


class Nodes:
    """Links of a worker of three nodes at a port of their own."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self._port = free_port()

    def config(self, rank: int, **flags: Any) -> ServerConfig:
        place = {"nnodes": 3, "node_rank": rank, "tp_size": 3, "dist_init_addr": f"127.0.0.1:{self._port}"}
        return config_from_values({"model_path": "m", **place, **flags})

    def start(self, rank: int, **flags: Any) -> Child:
        child = Child(f"node{rank}", JOIN if rank else GATHER, self.config(rank, **flags))
        self.children.append(child)
        return child

    def ready(self, leader: Child, others: list[Child]) -> Welcome:
        """Go through the start as the parents of these processes do; what the last of the others was told."""
        told = leader.receive()
        assert isinstance(told, Told)
        addresses = Addresses.create(3).over_nodes(str(told.value))
        welcome = Welcome(DECIDED, self.config(0).model, Identity("w", "i", 1, "127.0.0.1"), addresses)
        leader.tell(welcome)
        for other in others:
            heard = other.receive()
            assert isinstance(heard, Told)
            assert heard.value == welcome
            other.tell(None)
        wait_ready([leader, *others])
        return welcome


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    yield made
    for child in made.children:
        child.process.kill()
    stop_all(made.children)


def ended(child: Child) -> int:
    return child.process.wait(30)


def test_a_worker_begins_when_all_came_and_ends_everywhere(nodes: Nodes) -> None:
    others = [nodes.start(2), nodes.start(1)]  # before there is anybody to join
    leader = nodes.start(0)
    assert nodes.ready(leader, others).addresses.rendezvous == "tcp://127.0.0.1:0"
    leader.ask_to_stop()
    assert [ended(child) for child in (leader, *others)] == [0, 0, 0]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_node_ends_the_others(nodes: Nodes, victim: int) -> None:
    leader, *others = started = [nodes.start(rank) for rank in range(3)]
    nodes.ready(leader, others)
    started.pop(victim).process.kill()
    assert ended(started.pop(0)) == 1
    assert ended(started.pop(0)) == 1


def test_a_node_that_is_told_to_stop_has_node_0_drain(nodes: Nodes) -> None:
    told = threading.Event()
    former = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        leader, *others = (nodes.start(rank) for rank in range(3))
        nodes.ready(leader, others)
        others[0].ask_to_stop()
        assert told.wait(30)
        assert others[0].process.poll() is None  # it computes until node 0 has drained
        leader.ask_to_stop()
        assert [ended(child) for child in (leader, *others)] == [0, 0, 0]
    finally:
        signal.signal(signal.SIGTERM, former)


def test_who_is_refused(nodes: Nodes) -> None:
    nodes.start(0)
    for flags, reason in (
        (
            {"nnodes": 4, "tp_size": 4},
            r"-size is 3 on node 0 and 4 on node 1: give all nodes the same",
        ),
        ({"quantization": "fp8"}, r"--quantization is not given on node 0 and fp8 on node 1"),
    ):
        with pytest.raises(ConfigError, match=reason):
            nodes.start(1, **flags).receive()
    with pytest.raises(ConfigError, match=r"--node-rank 1: the worker has such a node already"):
        wait_ready([nodes.start(1), nodes.start(1)])


def test_a_stranger_is_not_let_in(nodes: Nodes, tmp_path: Path) -> None:
    """Not even seen; whoever knows a key of the service is."""
    ours, next_, theirs = (zmq.curve_keypair()[1].decode() for _ in range(3))
    for name, keys in (("node0", f"{ours}\n{next_}"), ("friend", f"{next_}\n{ours}"), ("stranger", theirs)):
        (tmp_path / name).write_text(keys)

    def start(rank: int, name: str) -> Child:
        return nodes.start(rank, disaggregation_curve_key_file=str(tmp_path / name))

    leader, stranger, friend = start(0, "node0"), start(1, "stranger"), start(2, "friend")
    assert not leader.connection.poll(2)
    stranger.process.kill()
    nodes.ready(leader, [start(1, "node0"), friend])


def test_keys_for_an_address_that_others_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BATON_TOKEN_FILE", raising=False)
    config = config_from_values({"model_path": "m"})
    assert node_keys(config, "127.0.0.3") is None
    with pytest.raises(ConfigError, match=r"others can reach 10\.0\.0\.1 too; share a secret"):
        node_keys(config, "10.0.0.1")
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv("BATON_TOKEN_FILE", str(tmp_path / "token"))
    keys = node_keys(config, "10.0.0.1")
    assert keys is not None
    assert keys == node_keys(config, "10.0.0.2")
    (tmp_path / "token").write_text("another\n")
    assert keys != node_keys(config, "10.0.0.1")


def test_node_0_listens_where_it_is() -> None:
    assert own_address("127.0.0.2") == "127.0.0.2"
    assert own_address("localhost", 0.0) in ("127.0.0.1", "::1")
    for elsewhere in ("192.0.2.1", "no-such-host.invalid"):
        with pytest.raises(ConfigError, match="is no address of this machine, which is node 0"):
            own_address(elsewhere, 0.0)


@pytest.mark.parametrize(
    ("flag", "shared"),
    [("--host", False), ("--log-level", False), ("--model-path", False), ("--nnodes", True), ("--page-size", True)],
)
def test_what_nodes_must_be_told_alike(flag: str, shared: bool) -> None:
    assert (flag in shared_flags(config_from_values({"model_path": "m"}))) == shared
