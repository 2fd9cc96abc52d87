"""Real processes that are killed and stopped in the middle of transfers over Mooncake and NIXL."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from support.handoff_workers import BIG, ChildWorker, Cluster, Worker, content, eventually

from baton_serving.handoff.events import Arrived, Begun, Delivered, ReceiveFailed, ReceiveQuiet, SendFailed, SendQuiet
from baton_serving.handoff.protocol import PageSpan
from baton_serving.handoff.rim import Limits

PAGES = list(range(1, 251))  # 125 MiB
LIMITS = Limits(lease=2.0)

Spawn = Callable[..., list[ChildWorker]]


# UCX may abort the surviving process when a peer is killed in the moment of first contact, and the test run with it.
@pytest.fixture(params=["mooncake", pytest.param("nixl", marks=pytest.mark.deep)])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    made = Cluster(request.param)
    yield made
    made.close()


@pytest.fixture
def spawn(cluster: Cluster) -> Iterator[Spawn]:
    children: list[ChildWorker] = []

    def make(*names: str) -> list[ChildWorker]:
        started = [ChildWorker(cluster.backend, name) for name in names]
        children.extend(started)
        for child in started:
            child.meet(cluster.registry)
        return started

    yield make
    for child in children:
        child.close()


def here(cluster: Cluster, name: str, fill: int = 0) -> Worker:
    worker = cluster.worker(name, layout=BIG, pages=256, limits=LIMITS)
    if fill:
        worker.fill(fill)
    return worker


def receive_from(child: ChildWorker, receiver: Worker, transfer: str, pages: list[int]) -> None:
    """Up to the point where the child may write into our pages."""
    child.call("open", transfer)
    receiver.service.expect(transfer, 0, child.name)
    child.call("started", transfer, len(pages) * BIG.page_size)
    receiver.wait(Begun, transfer)
    receiver.service.announce(transfer, [PageSpan(0, 0, pages)], 0)


def whole_from(child: ChildWorker, receiver: Worker, transfer: str) -> None:
    """A transfer that must be right."""
    receive_from(child, receiver, transfer, [5, 6, 7])
    child.call("chunk", transfer, [11, 12, 13], 0)
    child.call("finish", transfer, "s")
    receiver.wait(Arrived, transfer)
    expected = content(77, 255, receiver.pools[0].pages.shape[1])[[10, 11, 12]]
    np.testing.assert_array_equal(receiver.pools[0].pages[[5, 6, 7]], expected)


def quarantine(worker: Worker) -> int:
    stats = worker.service.stats()
    return stats.quarantined_source_pages + stats.quarantined_target_pages


def test_a_sender_that_is_killed(cluster: Cluster, spawn: Spawn) -> None:
    """Before its prefill begins, while it writes, and after it has delivered."""
    receiver = here(cluster, "d")
    first, second, third = spawn("p1", "p2", "p3")

    child = first
    child.call("open", "t1")
    receiver.service.expect("t1", 0, "p1")
    eventually(lambda: receiver.service.stats().peers == 1)
    child.kill()
    assert receiver.wait(ReceiveFailed, "t1", timeout=2).quiet

    child = second
    receive_from(child, receiver, "t2", PAGES)
    child.call("chunk", "t2", PAGES, 0)
    eventually(lambda: bool(receiver.pools[0].pages[1].any()))
    child.kill()
    killed = time.monotonic()
    assert not receiver.wait(ReceiveFailed, "t2", timeout=2).quiet
    receiver.wait(ReceiveQuiet, "t2", timeout=5)
    eventually(lambda: quarantine(receiver) == 0)
    assert time.monotonic() - killed < 5

    child = third
    whole_from(child, receiver, "t3")
    child.wait("Delivered", "t3")
    child.kill()
    eventually(lambda: receiver.service.stats().peers == 0)
    assert quarantine(receiver) == 0
    assert receiver.service.stats().fences == 1, "a sender that had delivered owes nothing"


def stop_in_the_middle(receiver: ChildWorker, sender: Worker, transfer: str) -> None:
    """Stop a receiver that has announced its pages: the first has begun to arrive, the others are under way."""
    receiver.call("announce", transfer, PAGES)
    receiver.call("clear", PAGES[0])
    receiver.wait("cleared")
    sender.service.chunk_ready(transfer, [PageSpan(0, 0, PAGES[:1])])
    receiver.call("landed", PAGES[0])
    receiver.wait("landed")
    receiver.signal(signal.SIGSTOP)
    sender.service.chunk_ready(transfer, [PageSpan(0, 1, PAGES[1:])])


@pytest.mark.deep
def test_a_receiver_that_is_killed_while_it_is_written_to(cluster: Cluster, spawn: Spawn) -> None:
    sender = here(cluster, "p", fill=3)
    child, other = spawn("d1", "d2")
    for peer in (child, other):
        peer.call("meet", "p", sender.service.endpoint, sender.incarnation)
    sender.service.open("t1")
    child.call("expect", "t1", 0, "p")
    sender.service.started("t1", 1)
    child.wait("Begun", "t1")
    stop_in_the_middle(child, sender, "t1")
    child.kill()

    failed = sender.wait(SendFailed, "t1", timeout=2)
    if not failed.quiet:
        sender.wait(SendQuiet, "t1", timeout=5)
    eventually(lambda: quarantine(sender) == 0)

    sender.service.open("t2")
    other.call("expect", "t2", 0, "p")
    sender.service.started("t2", 1)
    other.wait("Begun", "t2")
    other.call("announce", "t2", [1, 2])
    sender.service.chunk_ready("t2", [PageSpan(0, 0, [4, 5])])
    sender.service.finish("t2", b"s")
    other.wait("Arrived", "t2")
    sender.wait(Delivered, "t2")


def test_a_stopped_sender_is_fenced_and_writes_no_page_later(cluster: Cluster, spawn: Spawn) -> None:
    """The sender is stopped in the middle of a write for longer than the lease, and goes on after the fence."""
    receiver = here(cluster, "d")
    child, healthy = spawn("p", "healthy")
    whole_from(healthy, receiver, "before")
    receive_from(child, receiver, "t1", PAGES)
    child.call("chunk", "t1", PAGES, 0)
    eventually(lambda: bool(receiver.pools[0].pages[1].any()))
    child.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    assert not receiver.pools[0].pages[PAGES[-1]].any(), "the write was over before it could be stopped"

    failed = receiver.wait(ReceiveFailed, "t1")
    assert not failed.quiet
    assert quarantine(receiver) == len(PAGES)
    receiver.wait(ReceiveQuiet, "t1", timeout=10)
    assert time.monotonic() - stopped < LIMITS.lease + 10
    assert quarantine(receiver) == 0
    receiver.pools[0].pages[PAGES] = 0xAB
    whole_from(healthy, receiver, "after the fence")
    receiver.pools[0].pages[PAGES] = 0xAB

    child.signal(signal.SIGCONT)
    child.wait("SendFailed", "t1", timeout=30)
    # The child answers again, and what it had left to write has had its chance to land.
    child.call("stats")
    child.wait("stats")
    time.sleep(1.0)
    assert (receiver.pools[0].pages[PAGES] == 0xAB).all(), "a late write changed a page that was free"
    whole_from(healthy, receiver, "at the end")


@pytest.mark.deep
def test_a_stopped_receiver_frees_its_sender(cluster: Cluster, spawn: Spawn) -> None:
    """The sender's own pages leave quarantine too, though the write to the stopped peer never ends by itself."""
    sender = here(cluster, "p", fill=3)
    (child,) = spawn("d")
    child.call("meet", "p", sender.service.endpoint, sender.incarnation)
    sender.service.open("t1")
    child.call("expect", "t1", 0, "p")
    sender.service.started("t1", 1)
    child.wait("Begun", "t1")
    stop_in_the_middle(child, sender, "t1")
    stopped = time.monotonic()

    failed = sender.wait(SendFailed, "t1")
    if not failed.quiet:
        sender.wait(SendQuiet, "t1", timeout=10)
    assert time.monotonic() - stopped < LIMITS.lease + 10
    eventually(lambda: quarantine(sender) == 0)

    child.signal(signal.SIGCONT)
    child.wait("ReceiveFailed", "t1")
    child.wait("ReceiveQuiet", "t1", timeout=15)
