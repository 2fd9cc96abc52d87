"""Control connections that are encrypted: who gets in, and how keys change while they are in use."""

from __future__ import annotations

import zmq
from msgspec.structs import replace
from support.handoff_workers import Cluster, send_whole

from baton_serving.handoff.control import CurveKeys
from baton_serving.handoff.events import Arrived, Begun, ReceiveFailed
from baton_serving.handoff.protocol import PageSpan
from baton_serving.handoff.rim import Limits, PeerAddress


def key_pair() -> CurveKeys:
    public, secret = zmq.curve_keypair()
    return CurveKeys(public.decode(), secret.decode())


def test_control_connections_can_be_encrypted(fake_cluster: Cluster) -> None:
    ours, others = key_pair(), key_pair()
    sender = fake_cluster.worker("p", curve=ours)
    receiver = fake_cluster.worker("d", curve=ours, limits=Limits(connect=0.5))
    sender.fill(1)
    send_whole(sender, receiver, "t1", [1, 2], [3, 4])
    receiver.wait(Arrived, "t1")

    plain = fake_cluster.worker("e", limits=Limits(connect=0.5))
    plain.service.expect("t2", 0, "p")
    assert plain.wait(ReceiveFailed, "t2").quiet
    stranger = fake_cluster.worker("f", curve=others, limits=Limits(connect=0.5))
    for number, key in enumerate((others, ours)):  # the second time it knows the server's key
        fake_cluster.registry["p"] = PeerAddress(sender.service.endpoint, "", key.public)
        stranger.service.expect(f"t{3 + number}", 0, "p")
        assert "cannot reach" in stranger.wait(ReceiveFailed, f"t{3 + number}").failure.message
    assert sender.service.stats().peers == 1


def test_keys_change_under_open_transfers(fake_cluster: Cluster) -> None:
    first, second = key_pair(), key_pair()
    before, after = replace(first, others=(second.public,)), replace(second, others=(first.public,))
    sender, receiver = (fake_cluster.worker(name, curve=before) for name in ("p", "d"))
    sender.fill(1)
    sender.service.open("t1")
    receiver.service.expect("t1", 0, "p")
    sender.service.started("t1", 16)
    receiver.wait(Begun, "t1")
    former = sender.service.endpoint

    endpoint = sender.service.change_keys(after)
    assert endpoint == sender.service.endpoint != former
    fake_cluster.registry["p"] = PeerAddress(endpoint, sender.incarnation, after.public)
    receiver.service.announce("t1", [PageSpan(0, 0, [9])], 0)
    sender.service.chunk_ready("t1", [PageSpan(0, 0, [1])])
    sender.service.finish("t1", b"s")
    receiver.wait(Arrived, "t1")
    send_whole(sender, receiver, "t2", [1, 2], [3, 4])
    receiver.wait(Arrived, "t2")
    assert (sender.service.stats().peers, receiver.service.stats().peers) == (1, 1)  # it is one link still

    receiver.service.change_keys(after)
    late = fake_cluster.worker("e", curve=second)
    send_whole(sender, late, "t3", [1, 2], [3, 4])
    late.wait(Arrived, "t3")
    sender.service.change_keys(second)
    slow = fake_cluster.worker("f", curve=before, limits=Limits(connect=0.5))
    slow.service.expect("t4", 0, "p")
    assert "cannot reach" in slow.wait(ReceiveFailed, "t4").failure.message
