"""Who may ask for pages, and what a sender does whose receiver is gone before it asked."""

from __future__ import annotations

from support.handoff_workers import Cluster, send_whole

from baton_serving.handoff.events import Arrived, Begun, ReceiveFailed, SendFailed
from baton_serving.handoff.protocol import PageSpan


def test_a_receiver_of_another_tensor_parallel_size_than_prescribed_is_refused(fake_cluster: Cluster) -> None:
    sender = fake_cluster.worker("p", receiver_tp=2)
    sender.fill(9)
    narrow, wide = fake_cluster.worker("d"), fake_cluster.worker("e", tp=2)
    narrow.service.expect("t", 0, "p")
    failed = narrow.wait(ReceiveFailed, "t")
    assert "p (incarnation" in failed.failure.message
    assert "sends to workers of tp size 2 (--disaggregation-decode-tp), d (incarnation" in failed.failure.message
    send_whole(sender, wide, "t2", [1], [2])
    wide.wait(Arrived, "t2")


def test_a_sender_forsaken_by_its_receiver_ends_unless_someone_has_asked(fake_cluster: Cluster) -> None:
    sender, receiver = fake_cluster.worker("p"), fake_cluster.worker("d")
    sender.service.open("alone")
    sender.service.started("alone", 16)
    sender.service.forsake("alone", "it is gone")
    failed = sender.wait(SendFailed, "alone")
    assert (failed.failure.code, failed.failure.message, failed.quiet) == ("unavailable", "it is gone", True)

    sender.service.open("joined")
    receiver.service.expect("joined", 0, "p")
    sender.service.started("joined", 16)
    receiver.wait(Begun, "joined")
    sender.service.forsake("joined", "its registration lapsed")
    receiver.service.announce("joined", [PageSpan(0, 0, [9])], 0)
    sender.service.chunk_ready("joined", [PageSpan(0, 0, [1])])
    sender.service.finish("joined", b"s")
    receiver.wait(Arrived, "joined")
