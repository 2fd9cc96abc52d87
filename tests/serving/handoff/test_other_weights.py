"""A worker that serves other weights is another worker for its peers."""

from __future__ import annotations

import numpy as np
from support.handoff_workers import Cluster, Worker, send_whole

from baton_serving.handoff.events import Arrived, Delivered, ReceiveFailed
from baton_serving.handoff.rim import PeerAddress


def test_peers_meet_anew_when_weights_change_and_never_across_versions(fake_cluster: Cluster) -> None:
    sender, receiver = fake_cluster.worker("p"), fake_cluster.worker("d")
    sender.fill(1)

    def renew(worker: Worker, incarnation: str) -> None:
        worker.service.renew("new weights", incarnation)
        fake_cluster.registry[worker.name] = PeerAddress(worker.service.endpoint, incarnation)

    send_whole(sender, receiver, "before", [5, 6], [9, 10])
    receiver.wait(Arrived, "before")
    sender.wait(Delivered, "before")

    renew(sender, "another")
    sender.service.open("between")
    receiver.service.expect("between", 0, "p")
    failed = receiver.wait(ReceiveFailed, "between")
    assert "weight digest" in failed.failure.message
    sender.service.abort("between")

    renew(receiver, "one more")
    send_whole(sender, receiver, "after", [5, 6], [19, 20])
    receiver.wait(Arrived, "after")
    np.testing.assert_array_equal(receiver.pools[0].pages[[19, 20]], sender.pools[0].pages[[5, 6]])
