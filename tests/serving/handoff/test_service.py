"""Whole transfers between two services, on every backend."""

from __future__ import annotations

import numpy as np
from handoff_harness import Cluster, send_whole

from baton_serving.handoff.events import Arrived, Delivered


def test_pages_and_snapshot_arrive(cluster: Cluster) -> None:
    sender, receiver = cluster.worker("p"), cluster.worker("d")
    sender.fill(1)
    source, target = [5, 6, 7, 20, 3], [9, 10, 40, 41, 2]

    send_whole(sender, receiver, "t1", source, target)

    arrived = receiver.wait(Arrived, "t1")
    sender.wait(Delivered, "t1")
    assert arrived.snapshot == b"snapshot of t1"
    assert arrived.pages == 5
    assert arrived.nbytes == 5 * sender.pools[0].pages.shape[1]
    np.testing.assert_array_equal(receiver.pools[0].pages[target], sender.pools[0].pages[source])
    untouched = np.setdiff1d(np.arange(64), target)
    assert not receiver.pools[0].pages[untouched].any()
